"""Which of all versions of a citation or article counts, and what became of the others.

`parse.py` describes every item it meets by a row of COLUMNS in a parquet table beside the
documents; here one query over all tables decides. It needs no text, and `tables.Database` spills to
disk, so 50 million rows need no larger machine than 50.

NLM's rules: a deletion removes what was published up to it; of the rest the highest version
counts, of equal versions that in the latest file, of the same file the last. Retracted is what says
so itself, in either form, or what a notice that counts names; the notice goes as well. An abstract
whose article is there in full goes too. The two are known to be one by the article's PMID or by the
citation's PMCID.
"""

from typing import Any

import pyarrow as pa
from etils import epath
from pyarrow import parquet

from data.tables import Database, TableWriter, copy

KEPT = "kept"
_HELD = 1 << 13  # rows in memory

# shard, row: where the text is, row -1 where there is none. rank: of its file in the order of
# publication. ordinal: in its shard. item: citation, article, piece, deletion (number is gone) or
# retracts (what the citation or article of the same shard and ordinal takes back).
COLUMNS = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("rank", pa.int32()),
        ("ordinal", pa.int32()),
        ("item", pa.string()),
        ("source", pa.string()),
        ("number", pa.int64()),  # PMID, PMCID, or of The Pile
        ("version", pa.int32()),
        ("pmid", pa.int64()),  # of an article, where it says so
        ("pmcid", pa.int64()),  # of a citation, where it says so
        ("text", pa.bool_()),
        ("retracted", pa.bool_()),
        ("notice", pa.bool_()),
        ("closed", pa.bool_()),  # its licence does not permit it
    ]
)

_SETTLE = """
create temp table gone as
  select source, number, max(rank) as rank from items where item = 'deletion' group by all;

create temp table placed as
  select items.*, coalesce(gone.rank >= items.rank, false) as deleted,
    row_number() over (
      partition by items.source, items.number, coalesce(gone.rank >= items.rank, false)
      order by version desc, items.rank desc, ordinal desc
    ) as place
  from items left join gone on gone.source = items.source and gone.number = items.number
  where item in ('citation', 'article', 'piece');

create temp table linked as
  select pmcid, min(number) as pmid from placed
    where item = 'citation' and place = 1 and not deleted and pmcid is not null group by pmcid;

update placed set pmid = linked.pmid from linked
  where item = 'article' and placed.pmid is null and placed.number = linked.pmcid;

create temp table retractions as
  select pmid from placed where pmid is not null and place = 1 and not deleted and retracted
  union
  select r.number from items r join placed p on r.shard = p.shard and r.ordinal = p.ordinal
    where r.item = 'retracts' and p.place = 1 and not p.deleted and p.notice;

create temp table whole as
  select pmid from placed
    where item = 'article' and place = 1 and text and pmid is not null
      and pmid not in (from retractions)
      and not (closed or notice or retracted);

create temp table settled as
  select shard, row, source, pmid,
    case
      when deleted then 'deleted'
      when place > 1 and item = 'piece' then 'same text'
      when place > 1 then 'revised'
      when closed then 'licence not open'
      when notice then 'retraction notices'
      when retracted or coalesce(item = 'citation' and number in (from retractions), false)
        or coalesce(item = 'article' and pmid in (from retractions), false) then 'retracted'
      when not text then 'no text'
      when coalesce(item = 'citation' and number in (from whole), false)
        then 'full text is there'
      else 'kept'
    end as verdict
  from placed;
"""


class Rows:
    """Writes a shard's rows some at a time, in a `with` block; the table appears when it ends."""

    def __init__(self, file: epath.Path) -> None:
        self._table = TableWriter(file, COLUMNS)
        self._rows: list[tuple[Any, ...]] = []

    def __enter__(self) -> "Rows":
        self._table.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._table.__exit__(*error)

    def append(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == _HELD:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._table.write(*map(list, zip(*self._rows, strict=True)))
        self._rows.clear()


def settle(tables: list[epath.Path], output: epath.Path) -> dict[str, dict[str, int]]:
    """Writes (shard, row, pmid) of every document that counts to `output`; returns how many of each
    source came to which end: {"abstract": {"kept": 3, "revised": 1}}."""
    with Database(items=tables) as (query, temporary):
        for statement in _SETTLE.split(";\n"):
            query.execute(statement)
        kept = f"select shard, row, pmid from settled where verdict = '{KEPT}' order by shard, row"
        copy((query, temporary), kept, output)
        counts: dict[str, dict[str, int]] = {}
        ends = "select source, verdict, count(*) from settled group by all order by all"
        for source, verdict, count in query.execute(ends).fetchall():
            counts.setdefault(source, {})[verdict] = count
    return counts


def rows_of(shard: int, table: epath.Path) -> dict[int, int | None]:
    """{row: PMID} of a shard's documents in a table that `settle` wrote; the PMID of an article
    is perhaps known from its citation alone."""
    with table.open("rb") as stream:
        found = parquet.read_table(stream, filters=[("shard", "=", shard)], columns=["row", "pmid"])
    return dict(zip(found["row"].to_pylist(), found["pmid"].to_pylist(), strict=True))
