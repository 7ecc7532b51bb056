"""OpenAI's own client speaks with the server as with theirs."""

import pytest

from tests.completions import NAME, served

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(make_engine):
    with (
        served(make_engine()) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found,
    ):
        yield found


ASKED = dict(model=NAME, max_tokens=9, seed=3, temperature=0.5, extra_body={"top_k": 50})


def test_models(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).object == "model"


def test_completions(client):
    whole = client.completions.create(prompt=["Kari", "Tomel"], n=2, **ASKED)
    assert len(whole.choices) == 4
    options = {"include_usage": True}
    stream = client.completions.create(prompt=["Kari", "Tomel"], n=2, stream=True,
                                       stream_options=options, **ASKED)  # fmt: skip
    *pieces, last = stream
    texts = dict.fromkeys(range(4), "")
    for piece in pieces:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert last.usage == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


@pytest.mark.parametrize(
    ("changed", "error", "param"),
    [
        (dict(model="gpt-3.5"), openai.NotFoundError, "model"),
        (dict(logprobs=2), openai.BadRequestError, "logprobs"),
        (dict(max_tokens=99), openai.BadRequestError, "max_tokens"),
        (dict(temperature=101), openai.BadRequestError, "temperature"),
    ],
)
def test_errors_are_the_client_s(client, changed, error, param):
    with pytest.raises(error) as found:
        client.completions.create(prompt="Kari", **{**ASKED, **changed})
    assert found.value.param == param
