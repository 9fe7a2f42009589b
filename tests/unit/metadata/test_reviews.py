"""What is asked of the API server about a token, and what its answers mean."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from memkv.metadata.bearer import ServiceAccount
from memkv.metadata.callers import Forbidden, Unauthenticated
from memkv.metadata.kubernetes.errors import Away
from memkv.metadata.kubernetes.json_values import FieldInvalid, JsonObject
from memkv.metadata.kubernetes.reviews import ACCESS_REVIEWS, TOKEN_REVIEWS, ApiReviewer

USER = "system:serviceaccount:team-a:engine"
ENGINE = ServiceAccount("team-a", "engine")


class FakeApi:
    """Answers reviews as it is told, and keeps what was asked."""

    def __init__(self, status: JsonObject | None) -> None:
        self._status = status
        self.asked: list[tuple[str, str, JsonObject]] = []

    async def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None,
        body: JsonObject | None = None, content_type: str = "application/json",
    ) -> JsonObject:  # fmt: skip
        assert body is not None
        self.asked.append((method, path, body))
        if self._status is None:
            raise Away("POST: the API server does not answer")
        return {**body, "status": self._status}

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[JsonObject]:
        raise NotImplementedError
        yield {}

    async def close(self) -> None:
        return None


def account(status: JsonObject | None) -> ServiceAccount:
    return asyncio.run(ApiReviewer(FakeApi(status), "prod/kv").account("a.token.x"))


GOOD: JsonObject = {
    "authenticated": True, "audiences": ["memkv-metadata"], "user": {"username": USER},
}  # fmt: skip


def test_token_is_reviewed_for_the_audience_of_the_service() -> None:
    api = FakeApi(GOOD)
    assert asyncio.run(ApiReviewer(api, "prod/kv").account("a.token.x")) == ENGINE
    [(method, path, body)] = api.asked
    assert (method, path) == ("POST", TOKEN_REVIEWS)
    assert body["spec"] == {"token": "a.token.x", "audiences": ["memkv-metadata"]}


REFUSED: dict[str, tuple[JsonObject, type[Exception], str]] = {
    "not authenticated": ({**GOOD, "authenticated": False}, Unauthenticated, "no reason given"),
    "with a reason": ({"error": "token expired"}, Unauthenticated, "token expired"),
    "empty": ({}, Unauthenticated, "does not believe"),
    "no audiences": ({**GOOD, "audiences": []}, Unauthenticated, "not for audience"),
    "audiences left out": (
        {"authenticated": True, "user": {"username": USER}}, Unauthenticated, "not for audience",
    ),
    "other audiences": ({**GOOD, "audiences": ["vault"]}, Unauthenticated, "not for audience"),
    "a person": ({**GOOD, "user": {"username": "jane"}}, Forbidden, "no ServiceAccount"),
    "a node": ({**GOOD, "user": {"username": "system:node:a"}}, Forbidden, "no ServiceAccount"),
    "nobody": ({**GOOD, "user": {}}, Forbidden, "no ServiceAccount"),
    "nonsense": ({**GOOD, "authenticated": "yes"}, FieldInvalid, "authenticated"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    status, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        account(status)


def test_api_server_that_is_away_says_nothing_of_the_token() -> None:
    with pytest.raises(Away):
        account(None)


def test_right_to_connect_is_asked_for_this_pool_and_with_the_accounts_groups() -> None:
    api = FakeApi({"allowed": True})
    asyncio.run(ApiReviewer(api, "prod/kv").check_may_connect(ENGINE))
    [(_, path, body)] = api.asked
    assert path == ACCESS_REVIEWS
    assert body["spec"] == {
        "user": USER,
        "groups": [
            "system:serviceaccounts", "system:serviceaccounts:team-a", "system:authenticated",
        ],
        "resourceAttributes": {
            "verb": "get", "group": "memkv.io", "resource": "memkvpools",
            "subresource": "connect", "namespace": "prod", "name": "kv",
        },
    }  # fmt: skip


@pytest.mark.parametrize("status", [{"allowed": False}, {}, {"allowed": False, "denied": True}])
def test_account_without_the_right_is_told_which_role_it_needs(status: JsonObject) -> None:
    with pytest.raises(Forbidden, match=r"memkvpools/connect of prod/kv.*role"):
        asyncio.run(ApiReviewer(FakeApi(status), "prod/kv").check_may_connect(ENGINE))


def test_another_audience_is_asked_for_and_no_other_passes() -> None:
    api = FakeApi({**GOOD, "audiences": ["kv.corp"]})
    assert asyncio.run(ApiReviewer(api, "prod/kv", "kv.corp").account("a.token.x")) == ENGINE
    assert api.asked[0][2]["spec"] == {"token": "a.token.x", "audiences": ["kv.corp"]}
    with pytest.raises(Unauthenticated, match=r"not for audience kv\.corp"):
        asyncio.run(ApiReviewer(FakeApi(GOOD), "prod/kv", "kv.corp").account("a.token.x"))
