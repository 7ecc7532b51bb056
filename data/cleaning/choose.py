"""Which of all documents stay, decided by queries over the tables of `describe.py`, for `clean.py`.

In this order, each among what is left:

1. What gives a benchmark away (`contamination.py`) goes, and with it all that one of the next three
   rules finds to be the same: a copy without a PMID gives it away as well. So in every group below
   such a document comes first, and all others follow it out.
2. Of documents with the same words in the same order (a hash of 128 bits) the best stays.
3. An abstract goes if a full text has enough of its anchors (`Rules.contained`). Anchors that more
   than COMMON_ANCHOR documents have are common speech and do not count. An abstract that the
   article words anew stays, and so does one with under `Rules.least_anchors` anchors.
4. Of each group of near duplicates (`duplicates.py`) the best stays.

The best is: full text before abstract, NCBI's before The Pile's, the higher version, the later
date, the smaller number. This looks at the documents only, so how they are divided into shards
does not matter.
"""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
from etils import epath

from data import tables
from data.cleaning.contamination import COMMON, OF_PMIDS, OF_RUNS
from data.cleaning.describe import Rules
from data.cleaning.duplicates import Groups
from data.cleaning.sketches import Sketches, pairs
from data.tables import Database, TableWriter

COMMON_ANCHOR = 100

_CONTAINED = f"""
create temp table shared as select hash from anchors group by hash
  having count(*) between 2 and {COMMON_ANCHOR} and bool_or("full") and not bool_and("full");
create temp table own as select anchors.* from anchors join shared using (hash);
"""
_CONTAINED_PAIRS = """
select a.doc as part, f.doc as whole, count(*) as shared
  from own a join own f using (hash) where not a."full" and f."full" group by all order by all
"""

_BETTER = (
    "tainted desc, source in ('full_text', 'pile_full_text') desc, source like 'pile%', "
    "version desc, date desc, source, number, doc"
)

_CHOOSE = f"""
create temp table common as
  select run from hits group by run having count(distinct doc) > {COMMON};

create temp table given as
  select distinct doc, item, 'words' as how from hits join of_runs using (run)
    where not exists (from common where common.run = hits.run)
  union all
  select doc, item, 'pmid' from facts join of_pmids using (pmid) where verdict is null;

create temp table placed as
  select facts.*, doc in (select doc from given) as tainted from facts where verdict is null;

create temp table same as
  select doc, first_value(doc) over (partition by digest order by {_BETTER}) as keeper from placed;

create temp table one as
  select placed.* from placed join same using (doc) where same.doc = same.keeper;

create temp table pairs as
  with summed as (select part, whole, sum(shared) as shared from contained group by all)
  select part, whole, shared / a.anchors as share, a.tainted as part_tainted, f.tainted as tainted,
    f.source as source, f.version as version, f.date as date, f.number as number, f.doc as doc,
    a.source as part_source, a.number as part_number
  from summed join one a on a.doc = part join one f on f.doc = whole
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
    where not part_tainted and part not in (select doc from spread_from)
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

# A dropped document's keeper may itself go for another, up to three times: same text, then in a
# full text, then near, then by way of a benchmark. One large join a statement: each can spill.
_RESOLVE = """
create temp table everything as
  select * from dropped
  union all
  select near.doc, 'near duplicate', near.keeper, similarity
    from near join ranked using (doc) where not ranked.tainted;
create temp table onward as
  select doc, keeper from everything
    where keeper is not null and doc in (select keeper from everything);
create temp table ends as
  select a.doc, a.reason, a.similarity, a.keeper,
    coalesce(d.keeper, c.keeper, b.keeper, a.keeper) as final
  from everything a
    left join onward b on b.doc = a.keeper
    left join onward c on c.doc = b.keeper
    left join onward d on d.doc = c.keeper;
drop table everything;
create temp table named as
  select doc, source, number from facts
    where doc in (select keeper from ends union select final from ends);
create temp table likes as
  select ends.*, source as like_source, number as like_number
  from ends left join named on named.doc = keeper;
drop table ends;
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
) -> list[tuple[int, str, str, int]]:
    """Rules 1 to 3. Writes dropped.parquet, and ranked.parquet of what is left: 0 is the best.

    sought: folder of `contamination.prepare`.

    Returns (item, "pmid" or "words", source, number) of each document that gives an item away.
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
        _do(database, _CHOOSE, values)
        tables.copy(database, "from dropped", place / "dropped.parquet")
        tables.copy(database, _RANKED, place / "ranked.parquet")
        query = "select item, how, source, number from given join facts using (doc) order by all"
        return connection.execute(query).fetchall()


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
        _do(database, _RESOLVE)
        return tables.copy(database, _DROPPED, output)


def _do(database: tuple[Any, Path], script: str, values: dict[str, Any] | None = None) -> None:
    for name, value in (values or {}).items():
        script = script.replace(name, str(value))
    for statement in script.split(";\n"):
        database[0].execute(statement)
