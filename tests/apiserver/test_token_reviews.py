"""Tokens of real ServiceAccounts, judged by a real API server, through the whole of `--auth`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from kubernetes import client

from memkv.clock import SystemClock
from memkv.metadata.access import AccessConfig, Mode, open_access
from memkv.metadata.bearer import AUDIENCE, ServiceAccount
from memkv.metadata.callers import Authenticator, Caller, Forbidden, Presented, Unauthenticated
from memkv.testing.waiting import eventually
from memkv.wire.ticket import Rights

LIFE_S = 3600
T = TypeVar("T")


class Accounts:
    """Makes ServiceAccounts with and without the right to connect, and their tokens."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._core = client.CoreV1Api(api)
        self._rbac = client.RbacAuthorizationV1Api(api)
        self._authorization = client.AuthorizationV1Api(api)
        self.namespace = namespace
        rule = client.V1PolicyRule(
            api_groups=["memkv.io"], resources=["memkvpools/connect"], resource_names=["pool"],
            verbs=["get"],
        )  # fmt: skip
        meta = client.V1ObjectMeta(name="pool-users")
        self._rbac.create_namespaced_role(namespace, client.V1Role(metadata=meta, rules=[rule]))

    def make(self, name: str, *, may_connect: bool) -> None:
        meta = client.V1ObjectMeta(name=name)
        self._core.create_namespaced_service_account(
            self.namespace, client.V1ServiceAccount(metadata=meta)
        )
        if may_connect:
            subject = client.RbacV1Subject(
                kind="ServiceAccount", name=name, namespace=self.namespace
            )
            role = client.V1RoleRef(
                api_group="rbac.authorization.k8s.io", kind="Role", name="pool-users"
            )
            self._rbac.create_namespaced_role_binding(
                self.namespace,
                client.V1RoleBinding(metadata=meta, role_ref=role, subjects=[subject]),
            )
            eventually(lambda: self._may_connect(name), f"the API server knows {name}'s right")

    def _may_connect(self, name: str) -> bool:
        review = client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{self.namespace}:{name}",
            resource_attributes=client.V1ResourceAttributes(
                group="memkv.io", resource="memkvpools", subresource="connect", name="pool",
                namespace=self.namespace, verb="get",
            ),
        )  # fmt: skip
        answer = self._authorization.create_subject_access_review(
            client.V1SubjectAccessReview(spec=review)
        )
        assert answer.status is not None
        return bool(answer.status.allowed)

    def token(self, name: str, audience: str = AUDIENCE) -> str:
        """As kubelet asks for it on behalf of a pod."""
        spec = client.V1TokenRequestSpec(audiences=[audience], expiration_seconds=LIFE_S)
        answer = self._core.create_namespaced_service_account_token(
            name, self.namespace, client.AuthenticationV1TokenRequest(spec=spec)
        )
        assert answer.status is not None
        return str(answer.status.token)

    def delete(self, name: str) -> None:
        self._core.delete_namespaced_service_account(name, self.namespace)


@pytest.fixture
def accounts(
    api: client.ApiClient, namespace: str, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> Accounts:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return Accounts(api, namespace)


def with_access(
    accounts: Accounts, work: Callable[[Authenticator], Awaitable[T]], pool: str = "pool"
) -> T:
    """Run `work` with what a metadata service of the pool lets callers in by."""

    async def run() -> T:
        node = ServiceAccount(accounts.namespace, "pool-node")
        config = AccessConfig(Mode.SERVICE_ACCOUNT, node_accounts=frozenset({node}))
        async with AsyncExitStack() as stack:
            clock = SystemClock()
            found = await open_access(config, f"{accounts.namespace}/{pool}", clock, stack)
            return await work(found)

    return asyncio.run(run())


def caller_of(accounts: Accounts, token: str, pool: str = "pool") -> Caller:
    return with_access(accounts, lambda found: found.caller(Presented(token)), pool)


def test_account_with_the_right_is_known_by_its_namespace(accounts: Accounts) -> None:
    accounts.make("engine", may_connect=True)
    caller = caller_of(accounts, accounts.token("engine"))
    user = f"system:serviceaccount:{accounts.namespace}:engine"
    assert caller == Caller(user, accounts.namespace)


def test_account_without_the_right_is_forbidden(accounts: Accounts) -> None:
    accounts.make("stranger", may_connect=False)
    with pytest.raises(Forbidden, match="memkvpools/connect"):
        caller_of(accounts, accounts.token("stranger"))


def test_right_to_one_pool_is_none_to_another(accounts: Accounts) -> None:
    accounts.make("engine", may_connect=True)
    with pytest.raises(Forbidden, match=r"of .*/other"):
        caller_of(accounts, accounts.token("engine"), pool="other")


def test_token_for_another_audience_is_refused(accounts: Accounts) -> None:
    accounts.make("engine", may_connect=True)
    with pytest.raises(Unauthenticated, match="audience"):
        caller_of(accounts, accounts.token("engine", "vault"))


def test_changed_token_is_refused_by_the_server(accounts: Accounts) -> None:
    accounts.make("engine", may_connect=True)
    head, body, signature = accounts.token("engine").split(".")
    forged = ".".join([head, body, signature[:-8] + "AAAAAAAA"])
    with pytest.raises(Unauthenticated, match="does not believe"):
        caller_of(accounts, forged)


def test_token_of_a_deleted_account_is_refused(accounts: Accounts) -> None:
    accounts.make("engine", may_connect=True)
    token = accounts.token("engine")
    accounts.delete("engine")

    def is_refused() -> bool:  # a moment later: API servers look their accounts up in a cache
        try:
            caller_of(accounts, token)
        except Unauthenticated as error:
            return "does not believe" in str(error)
        return False

    eventually(is_refused, "the token is refused")


def test_node_moves_slots_without_a_role(accounts: Accounts) -> None:
    accounts.make("pool-node", may_connect=False)
    assert caller_of(accounts, accounts.token("pool-node")).rights == Rights.PEER
