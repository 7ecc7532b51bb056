"""Documents thinned out: what goes and why, which of several stays, and nothing lost over it."""

import itertools
import json
import random

import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biomedlm_jax.entry import UserError
from data import clean, documents
from data.cleaning.describe import Rules
from data.documents import Document
from tests.test_clean_benchmarks import MEDQA, PUBMEDQA, VIGNETTE, lines

FUNCTION_WORDS = ("the", "of", "and", "in", "to", "a", "was", "with", "for", "were", "that")


def text(draw, count=120):
    """English in its function words; all others are invented."""
    return [
        draw.choice(FUNCTION_WORDS) if draw.random() < 0.3 else f"w{draw.randrange(10**7)}"
        for _ in range(count)
    ]


def prose(draw, count=120):
    return " ".join(text(draw, count))


def document(number, text, source="abstract", **fields):
    prefix = {"abstract": "PMID", "full_text": "PMC", "pile_abstract": "PILEA"}
    fields = {"date": "2020", "language": "eng", "licence": "x", **fields}
    return Document(f"{prefix.get(source, 'PILEC')}:{number}", source, text=text, **fields)


def write(folder, *shards, **entries):
    """A folder of documents with these shards, as `data.parse` leaves it."""
    place = epath.Path(folder) / documents.SHARDS
    place.mkdir(parents=True)
    done = []
    for number, found in enumerate(shards):
        with documents.ShardWriter(place / f"{number:05}.jsonl.zst", 20) as writer:
            for one in found:
                writer.write(one)
        done.append(writer.summary())
    documents.finish(epath.Path(folder), done, 20, **entries)
    return folder


def jaccard(one, two):
    sets = [{tuple(found[i : i + 5]) for i in range(len(found) - 4)} for found in (one, two)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(draw, found, goal):
    """`found` with one word after another made another, until the similarity is at most `goal`."""
    other = list(found)
    places = draw.sample(range(0, len(found), 6), len(range(0, len(found), 6)))
    for place in places:
        if jaccard(found, other) <= goal:
            break
        other[place] = f"x{draw.randrange(10**7)}"
    return other


class Cleaned:
    """kept: ids in order; dropped: lines of the list by id."""

    def __init__(self, folder):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.documents = list(documents.read(folder))
        self.kept = [one.id for one in self.documents]
        found = documents.lines(epath.Path(folder) / clean.DROPPED)
        self.dropped = {line["id"]: line for line in map(json.loads, found)}

    @property
    def reasons(self):
        return {id: line["reason"] for id, line in self.dropped.items()}


@pytest.fixture
def cleaned(tmp_path):
    """cleaned(shard, shard, rules=..., tests={name: content}): what is left of documents."""
    numbers = itertools.count()

    def run(*shards, rules=None, tests=None, **entries):
        place = tmp_path / str(next(numbers))
        write(place / "in", *shards, **entries)
        if tests:
            (place / "tests").mkdir()
            for name, content in tests.items():
                (place / "tests" / name).write_text(content)
        clean.clean(place / "in", place / "out", rules, tests and place / "tests")
        return Cleaned(place / "out")

    return run


def test_short_and_foreign_documents_go(cleaned):
    draw = random.Random(0)
    german = " ".join(f"der und die das ist nicht mit wort{n}" for n in range(20))
    found = [
        document(1, prose(draw, 19)),
        document(2, prose(draw, 20)),
        document(3, prose(draw), language="ger"),
        document(4, german),
        document(5, german, "pile_abstract", language="und"),
        document(6, prose(draw), "pile_abstract", language="und"),
        document(7, "1 2 3.5 0 04 " * 300 + prose(draw)),  # a table's numbers do not count
    ]
    result = cleaned(found)
    assert result.kept == ["PMID:2", "PMID:3", "PILEA:6", "PMID:7"]
    assert result.reasons == {
        "PMID:1": "too short",
        "PMID:4": "not English",
        "PILEA:5": "not English",
    }
    assert result.manifest["counts"]["clean"] == {"kept": 4, "not English": 2, "too short": 1}
    assert result.manifest["counts"]["clean pile_abstract"] == {"kept": 1, "not English": 1}
    nbytes = result.manifest["counts"]["clean bytes"]
    assert nbytes["kept"] == sum(len(one.text.encode()) for one in found if one.id in result.kept)
    assert result.manifest["cleaning"]["least_words"] == 20
    assert result.manifest["benchmarks"] is None
    other = cleaned(found, rules=Rules(least_words=10))
    assert other.kept == ["PMID:1", "PMID:2", "PMID:3", "PILEA:6", "PMID:7"]


def test_what_parse_found_out_is_passed_on(cleaned, tmp_path):
    entries = {
        "counts": {"read": {"citations": 7}, "abstract": {"kept": 1}},
        "licences": {"CC-BY": 3},
        "files": [{"name": "a.xml", "sha256": "0"}],
        "quarantined": 2,
    }
    (tmp_path / "0" / "in").mkdir(parents=True)
    (tmp_path / "0" / "in" / documents.QUARANTINE).write_text('{"file": "a.xml"}\n')
    result = cleaned([document(1, prose(random.Random(0)))], **entries)
    for key in ("licences", "files", "quarantined"):
        assert result.manifest[key] == entries[key]
    assert list(result.manifest["counts"]) == [
        "read", "abstract", "clean", "clean bytes", "clean abstract",
    ]  # fmt: skip
    assert (result.folder / documents.QUARANTINE).read_text() == '{"file": "a.xml"}\n'
    assert result.manifest["heldout_per_mille"] == 20
    documents.read_manifest(result.folder)


BETTER = [  # before what is worse
    (document(19, "", "pile_full_text"), document(11, "")),
    (document(29, "", "full_text"), document(21, "", "pile_full_text", date="2021")),
    (document(39, ""), document(31, "", "pile_abstract", date="2021", version=3)),
    (document(49, "", version=2), document(41, "", date="2021")),
    (document(59, "", date="2020-02"), document(51, "", date="2020")),
    (document(61, ""), document(69, "")),
]


def test_which_of_two_with_the_same_text_stays(cleaned):
    better, worse = [], []
    for number, (one, other) in enumerate(BETTER):
        same = prose(random.Random(number))
        written = "“" + same.upper().replace(" ", ",\n", 9) + "”"
        better.append(Document(**{**vars(one), "text": same}))
        worse.append(Document(**{**vars(other), "text": written}))
    for shards in ([better + worse], [worse, better]):
        result = cleaned(*shards)
        assert result.kept == [one.id for one in better]
        for one, other in BETTER:
            assert result.dropped[other.id] == {
                "id": other.id,
                "source": other.source,
                "reason": "same text",
                "similarity": 1,
                "like": one.id,
                "kept": one.id,
            }


def test_an_abstract_inside_a_full_text_goes(cleaned):
    draw = random.Random(0)
    inside, new, partly, tiny = (text(draw, count) for count in (200, 200, 200, 25))
    whole = [*text(draw, 900), *inside, *text(draw, 2000), *partly[:100], *tiny, *text(draw, 90)]
    found = [
        document(1, " ".join(inside).upper(), "pile_abstract", language="und"),
        document(2, " ".join(new), "pile_abstract", language="und"),
        document(3, " ".join(partly)),
        document(4, " ".join(tiny)),  # stays: known limit, see least_anchors
        document(5, ". ".join(whole), "pile_full_text", language="und"),
        document(6, " ".join([*inside, *text(draw, 300)])),  # no full text
    ]
    for shards in ([found], [[one] for one in reversed(found)]):
        result = cleaned(*shards)
        assert result.reasons == {"PILEA:1": "in a full text"}
        assert result.dropped["PILEA:1"]["kept"] == "PILEC:5"
        assert result.dropped["PILEA:1"]["similarity"] == 1


def test_common_speech_does_not_put_an_abstract_into_a_full_text(cleaned):
    draw = random.Random(0)
    common = prose(draw, 200)
    found = [document(n, f"{prose(draw, 400)} {common}", "full_text") for n in range(1, 102)]
    result = cleaned([*found, document(1, common)])
    assert result.dropped == {}
    assert cleaned([*found[:50], document(1, common)]).reasons == {"PMID:1": "in a full text"}


def test_copies_of_an_abstract_are_no_common_speech(cleaned):
    """A hundred and one of them in three full texts, which have many copies themselves."""
    draw = random.Random(0)
    abstract = prose(draw, 100)
    wholes = [f"{prose(draw, 300)} {abstract} {prose(draw, 300)}" for _ in range(3)]
    found = [document(n, abstract) for n in range(1, 102)]
    found += [document(n, wholes[n % 3], "full_text") for n in range(1, 106)]
    draw.shuffle(found)
    result = cleaned(found)
    assert result.manifest["counts"]["clean"] == {"in a full text": 1, "kept": 3, "same text": 202}
    assert all(id.startswith("PMC:") for id in result.kept)
    abstracts = [line for id, line in result.dropped.items() if id.startswith("PMID:")]
    assert {line["kept"] for line in abstracts} <= set(result.kept)


def test_every_abstract_of_60_words_that_stands_in_a_full_text_is_found(cleaned):
    """The least that has 3 anchors wherever it stands; and what is held out is treated no other
    way, so nothing of it is trained on."""
    draw = random.Random(0)
    inside = [prose(draw, 60) for _ in range(300)]
    found = [document(n, one) for n, one in enumerate(inside, 1)]
    for number in range(0, 300, 10):
        passages = [f"{prose(draw, 40)} {one}" for one in inside[number : number + 10]]
        found.append(document(1000 + number, f"{' '.join(passages)} end", "full_text"))
    assert 0 < sum(documents.is_heldout(one.id, 20) for one in found[:300]) < 300
    result = cleaned(found)
    assert set(result.reasons) == {f"PMID:{n}" for n in range(1, 301)}
    assert set(result.reasons.values()) == {"in a full text"}


TESTS = {
    "ori_pqal.json": json.dumps({"11": PUBMEDQA, "12": PUBMEDQA}),
    "dev.jsonl": lines(MEDQA),
    "train.jsonl": lines({**MEDQA, "question": VIGNETTE.replace("knee", "elbow of training")}),
}


def corpora():
    """Documents of few texts, so that most are like another."""
    return st.lists(
        st.tuples(
            st.integers(0, 3),  # which text
            st.sampled_from(["abstract", "full_text", "pile_abstract", "pile_full_text"]),
            st.sampled_from(["", "same", "near", "short", "longer"]),
            st.sampled_from(["2019", "2020-01", ""]),
            st.booleans(),  # of a test item, where it can be
        ),
        min_size=5,
        max_size=40,
    )


def made(described):
    texts = [text(random.Random(seed), 200) for seed in range(4)]
    found = []
    for number, (which, source, change, date, asked) in enumerate(described, 1):
        own = list(texts[which])
        if change == "near":
            own[7 * number % 200] = f"changed{number}"
        elif change == "short":
            own = own[:15]
        elif change == "longer":
            own += text(random.Random(number), 300)
        joined = " ".join(own).upper() if change == "same" else " ".join(own)
        fields = {"date": date, "pmid": 11 if asked and not source.startswith("pile") else None}
        found.append(document(number, joined, source, **fields))
    return [*found, document(999, prose(random.Random(99)))]


@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpora(), st.randoms(use_true_random=False))
def test_nothing_is_lost_or_doubled_and_shards_do_not_matter(cleaned, described, draw):
    found = made(described)
    rules = Rules(near=0.9)
    result = cleaned(found, rules=rules, tests=TESTS)
    assert result.kept == [one.id for one in found if one.id in set(result.kept)]
    assert sorted([*result.kept, *result.dropped]) == sorted(one.id for one in found)
    assert [one for one in found if one.id in set(result.kept)] == result.documents
    for id, line in result.dropped.items():
        if line["reason"] in ("same text", "in a full text", "near duplicate"):
            assert line["kept"] in result.kept, id
            assert line["like"] in {line["kept"], *result.dropped}
        else:
            assert line["kept"] is None
            assert line["reason"] in ("too short", "benchmark")
    draw.shuffle(found)
    cut = draw.randrange(len(found) + 1)
    other = cleaned(found[:cut], found[cut:], rules=rules, tests=TESTS)
    assert sorted(other.kept) == sorted(result.kept)
    assert other.dropped == result.dropped
    assert other.manifest["counts"] == result.manifest["counts"]


def test_folders_that_can_not_be_cleaned(cleaned, tmp_path):
    with pytest.raises(UserError, match=r"--input=.* is no folder of documents.*data.parse"):
        clean.clean(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no document stays of these: 1 too short"):
        cleaned([document(1, "Too short.")])
    found = [document(n, prose(random.Random(n))) for n in range(1, 4)]
    folder = write(tmp_path / "in", found[:1], found[1:])
    first, second = sorted((folder / "shards").iterdir())
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"shards/00000.jsonl.zst is not the file .* 2 lines"):
        clean.clean(folder, tmp_path / "out")
    first.write_bytes(second.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"00000.jsonl.zst, line .* is no document.*cut"):
        clean.clean(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cleaned(found)
    with pytest.raises(UserError, match=r"was cleaned already.*clean the folder that data.parse"):
        clean.clean(tmp_path / "1" / "out", tmp_path / "out")


def test_a_shard_that_changes_between_two_steps_is_refused(tmp_path, monkeypatch):
    """Another one with as many documents is put in its place when verdicts are there."""
    found = [document(n, prose(random.Random(n))) for n in range(1, 5)]
    folder = write(tmp_path / "in", found[:2], found[2:])
    first, second = sorted((folder / "shards").iterdir())

    def resolve(*given):
        first.write_bytes(second.read_bytes())
        return resolved(*given)

    resolved = clean.choose.resolve
    monkeypatch.setattr(clean.choose, "resolve", resolve)
    with pytest.raises(UserError, match=r"00000.jsonl.zst is not the file that manifest.json"):
        clean.clean(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
