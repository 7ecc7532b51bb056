"""Which of all documents stay, decided by queries over the tables of `describe.py`, for `clean.py`.

In this order, each among what is left:

1. What gives a benchmark away (`contamination.py`) goes, and with it all that one of the next three
   rules finds to be the same: a copy without a PMID gives it away as well. So in every group below
   such a document comes first, and all others follow it out.
2. Of documents with the same words in the same order (a hash of 128 bits) the best stays.
3. An abstract goes if a full text has enough of its anchors (`Rules.contained`). Anchors that more
   than COMMON_ANCHOR texts have are common speech and do not count; copies are one text. An
   abstract that the article words anew stays, and so does one with under `Rules.least_anchors`
   anchors, which one of 60 words or more always has (`describe.py`).
4. Of each group of near duplicates (`duplicates.py`) the best stays.

The best is: full text before abstract, NCBI's before The Pile's, the higher version, the later
date, the smaller number. This looks at the documents only, so neither how they are divided into
shards matters, nor whether one is held out: of two that a rule finds to be the same one goes
whatever the split of each, so no duplicate that is detected stands on both sides.
"""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from etils import epath

from biomedlm_jax.pipeline.passages import COMMON, LONG, SEVERAL
from data import tables
from data.cleaning.contamination import OF_PMIDS, OF_RUNS
from data.cleaning.describe import FULL, Rules
from data.cleaning.duplicates import Groups
from data.cleaning.sketches import Sketches, pairs
from data.tables import Database, TableWriter

COMMON_ANCHOR = 100

# Of all documents with the same text the first stands for them.
_CONTAINED = f"""
create temp table met as
  select hash, count(*) as docs from anchors group by hash
  having docs > 1 and bool_or("full") and not bool_and("full");
create temp table common as
  select hash from anchors semi join (from met where docs > {COMMON_ANCHOR}) using (hash)
  group by hash having count(distinct text) > {COMMON_ANCHOR};
create temp table own as
  select hash, "full", min(doc) as doc
  from anchors semi join met using (hash) anti join common using (hash) group by hash, "full", text;
"""
_CONTAINED_PAIRS = """
select a.doc as part, f.doc as whole, count(*) as shared
  from own a join own f using (hash) where not a."full" and f."full" group by all order by all
"""

_BETTER = (
    f"tainted desc, source in {FULL} desc, source like 'pile%', version desc, date desc, source, "
    "number, doc"
)

# `much`: it gives the item away; else it is left in for being common.
_GIVEN = f"""
create temp table common as
  select run from hits join facts using (doc) group by run having count(distinct digest) > {COMMON};
create temp table idiom as select run from of_runs group by run having count(*) > {COMMON};
create temp table whole as
  select item, count(*) as runs from of_runs anti join idiom using (run) group by item;
create temp table shown as
  select doc, item, bool_and(common.run is not null) as common, count(*) - count(idiom.run) as runs
  from hits join of_runs using (run) left join common using (run) left join idiom using (run)
  group by doc, item;
create temp table judged as
  select doc, item,
    not common or (shown.runs >= {SEVERAL} and shown.runs >= least({LONG}, whole.runs / 2)) as much
  from shown left join whole using (item);
create temp table given as
  select doc, item, 'words' as how from judged where much
  union all
  select doc, item, 'pmid' from facts join of_pmids using (pmid) where verdict is null;
"""
_GIVEN_FOUND = "select item, how, source, number from given join facts using (doc) order by all"
_LEFT_IN = "select item, count(*) from judged where not much group by item"

_CHOOSE = f"""
create temp table placed as
  select facts.*, doc in (select doc from given) as tainted from facts where verdict is null;

create temp table same as
  select doc, first_value(doc) over (partition by digest order by {_BETTER}) as keeper from placed;

create temp table one as
  select placed.* from placed join same using (doc) where same.doc = same.keeper;

create temp table found as
  select a.keeper as part, f.keeper as whole, sum(shared) as shared
  from contained join same a on a.doc = part join same f on f.doc = whole
  where a.keeper <> f.keeper group by all;

create temp table pairs as
  select part, whole, shared / a.anchors as share, a.tainted as part_tainted, f.tainted as tainted,
    f.source as source, f.version as version, f.date as date, f.number as number, f.doc as doc,
    a.source as part_source, a.number as part_number
  from found join one a on a.doc = part join one f on f.doc = whole
  where shared >= $least and shared >= $contained * a.anchors;

create temp table spread as
  select part as doc, whole as keeper, share, source, number from pairs
    where tainted and not part_tainted
  union all
  select whole, part, share, part_source, part_number from pairs
    where part_tainted and not tainted;

create temp table spread_from as
  select doc, keeper, share from spread
    qualify row_number() over (partition by doc order by share desc, source, number, keeper) = 1;

create temp table inside as
  select part as doc, whole as keeper, share from pairs
    where not part_tainted and part_source not in {FULL}
      and part not in (select doc from spread_from)
    qualify row_number() over (partition by part order by share desc, {_BETTER}) = 1;

create temp table dropped as
  select doc, verdict as reason, null::bigint as keeper, null::double as similarity
    from facts where verdict is not null
  union all select doc, 'same text', keeper, 1 from same where doc <> keeper
  union all select doc, 'in a full text', keeper, share from inside
  union all select doc, 'benchmark', null, null from one where tainted
  union all select doc, 'benchmark', keeper, share from spread_from;

create temp table left_over as
  select one.* exclude (tainted), (tainted or doc in (select doc from spread_from)) as tainted
  from one where doc not in (select doc from inside);
"""
_RANKED = f"""
select doc, (row_number() over (order by {_BETTER}) - 1)::integer as rank, tainted from left_over
order by doc
"""

_CANDIDATES = """
create temp table placed as select hash, rank from band join ranked using (doc);
create temp table shared as select hash from placed group by hash having count(*) > 1;
create temp table links as
  select rank, min(rank) over (partition by hash) as best,
    lag(rank) over (partition by hash order by rank) as previous
  from placed join shared using (hash);
"""
_CANDIDATE_PAIRS = """
select best as low, rank from links where rank > best
  union select previous, rank from links where previous is not null order by all
"""

# One large join a statement: each can spill.
_LINKS = """
create temp table links as
  select *, keeper as final from dropped
  union all
  select near.doc, 'near duplicate', near.keeper, similarity, near.keeper
    from near join ranked using (doc) where not ranked.tainted;
create temp table onward as
  select doc, keeper from links
    where keeper is not null and doc in (select keeper from links);
"""
# A dropped document's keeper may itself go for another, and that one as well.
_FURTHER = "select count(*) from links join onward on onward.doc = links.final"
_FOLLOW = """
create temp table followed as
  select links.* replace (coalesce(onward.keeper, links.final) as final)
  from links left join onward on onward.doc = links.final;
drop table links;
alter table followed rename to links;
"""
_TOLD = """
create temp table named as
  select doc, source, number from facts
    where doc in (select keeper from links union select final from links);
create temp table likes as
  select links.*, source as like_source, number as like_number
  from links left join named on named.doc = keeper;
drop table links;
create temp table gone as select doc from dropped where reason = 'benchmark' and keeper is null;
create temp table told as
  select likes.doc, similarity, like_source, like_number,
    case when gone.doc is null then reason else 'benchmark' end as reason,
    case when gone.doc is null then final end as kept
  from likes left join gone on gone.doc = final;
drop table likes;
"""
_DROPPED = """
select told.doc, reason, similarity, like_source, like_number,
  source as kept_source, number as kept_number
from told left join named on named.doc = kept
order by told.doc
"""
_NEAR = pa.schema([("doc", pa.int64()), ("keeper", pa.int64()), ("similarity", pa.float64())])
Files = list[epath.Path]


def contained(anchors: Files, output: epath.Path) -> int:
    """Writes (abstract, full text, anchors that both have) of one part of all anchors; returns the
    number of pairs."""
    with Database(anchors=anchors) as database:
        _do(database, _CONTAINED)
        return tables.copy(database, _CONTAINED_PAIRS, output)


def choose(
    facts: Files,
    hits: Files,
    shared: Files,
    sought: epath.Path | None,
    rules: Rules,
    place: epath.Path,
) -> tuple[list[tuple[int, str, str, int]], list[tuple[int, int]]]:
    """Rules 1 to 3. Writes dropped.parquet, and ranked.parquet of what is left: 0 is the best.

    sought: folder of `contamination.prepare`.

    Returns (item, "pmid" or "words", source, number) of each document that gives an item away, and
    (item, documents) of those with words of it that are left in for being common.
    """
    views = dict(facts=facts, hits=hits, contained=shared)
    if sought:
        views.update(of_runs=[sought / OF_RUNS], of_pmids=[sought / OF_PMIDS])
    with Database(**views) as database:
        connection = database[0]
        if not sought:
            connection.execute("create temp table of_runs (run bigint, item integer)")
            connection.execute("create temp table of_pmids (pmid bigint, item integer)")
        values = {"$least": rules.least_anchors, "$contained": rules.contained}
        _do(database, _GIVEN)
        _do(database, _CHOOSE, values)
        tables.copy(database, "from dropped", place / "dropped.parquet")
        tables.copy(database, _RANKED, place / "ranked.parquet")
        found = connection.execute(_GIVEN_FOUND).fetchall()
        return found, connection.execute(_LEFT_IN).fetchall()


def candidates(band: Files, place: epath.Path, output: epath.Path) -> int:
    """Writes the ranks (low, rank) of pairs that agree in a band; returns how many."""
    with Database(band=band, ranked=[place / "ranked.parquet"]) as database:
        _do(database, _CANDIDATES)
        return tables.copy(database, _CANDIDATE_PAIRS, output)


def near(found: Files, signatures: Files, place: epath.Path, rules: Rules) -> dict[str, int]:
    """Rule 4. Writes near.parquet: a document, the best of its group, and how similar they are,
    which in a chain of similar ones may be less than `Rules.near`. A pair counts as a candidate
    once for each band."""
    with tempfile.TemporaryDirectory() as folder:
        sketches = Sketches(Path(folder), place / "ranked.parquet", found, signatures)
        groups = Groups(sketches.count)
        compared = similar = 0
        for low, rank in pairs(found):
            same = sketches.similarities(low, rank) >= rules.near
            groups.link(low[same], rank[same])
            compared, similar = compared + len(same), similar + int(same.sum())
        with TableWriter(place / "near.parquet", _NEAR) as writer:
            for others, firsts in groups.others():
                docs = sketches.documents(others), sketches.documents(firsts)
                writer.write(*docs, sketches.similarities(others, firsts))
        return {"candidates": compared, "similar": similar}


def resolve(facts: Files, place: epath.Path, output: epath.Path) -> int:
    """Writes of every dropped document the reason, the one it is like, how similar that is, and
    the one that stays in its place; sorted by document. Returns how many."""
    views = {name: [place / f"{name}.parquet"] for name in ("dropped", "near", "ranked")}
    with Database(facts=facts, **views) as database:
        _do(database, _LINKS)
        while database[0].execute(_FURTHER).fetchall()[0][0]:
            _do(database, _FOLLOW)
        _do(database, _TOLD)
        return tables.copy(database, _DROPPED, output)


def _do(database: tuple[Any, Path], script: str, values: dict[str, Any] | None = None) -> None:
    for name, value in (values or {}).items():
        script = script.replace(name, str(value))
    for statement in script.split(";\n"):
        database[0].execute(statement)
