"""What the API server says of a token: TokenReview, then SubjectAccessReview.

The right to use a pool is the right to `get memkvpools/connect` of that pool, so people grant it
with roles as they grant everything else.
"""

from memkv.metadata.bearer import AUDIENCE, ServiceAccount
from memkv.metadata.callers import Forbidden, Unauthenticated
from memkv.metadata.kubernetes.api_server import ApiServer
from memkv.metadata.kubernetes.json_values import Manifest, Reader

TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
GROUP, RESOURCE, SUBRESOURCE, VERB = "memkv.io", "memkvpools", "connect", "get"


class ApiReviewer:
    """Implements `memkv.metadata.bearer.Reviewer`. The API server stays the caller's.

    Errors of the API server itself (away, or this ServiceAccount may not create reviews) pass
    through: they say nothing of the token.
    """

    def __init__(self, api: ApiServer, pool: str, audience: str = AUDIENCE) -> None:
        """`pool`: NAMESPACE/NAME. `audience`: whom tokens must be meant for."""
        self._api = api
        self._audience = audience
        self._namespace, _, self._name = pool.partition("/")

    async def account(self, token: str) -> ServiceAccount:
        body: Manifest = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        answer = await self._api.request("POST", TOKEN_REVIEWS, body=body)
        status = Reader(answer).object("status")
        if not status.flag("authenticated"):
            raise Unauthenticated(
                "the API server does not believe the token"
                f" ({status.text('error') or 'no reason given'}): is it of this cluster, and not"
                " of a deleted pod or ServiceAccount?"
            )
        # An authenticator that does not know audiences leaves the list empty, and would pass a
        # token that is meant for somebody else.
        if self._audience not in status.texts("audiences"):
            raise Unauthenticated(
                f"the API server believes the token, but not for audience {self._audience}"
            )
        return ServiceAccount.of_user(status.object("user").text("username"))

    async def check_may_connect(self, account: ServiceAccount) -> None:
        body: Manifest = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": account.user,
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{account.namespace}",
                    "system:authenticated",
                ],
                "resourceAttributes": {
                    "verb": VERB,
                    "group": GROUP,
                    "resource": RESOURCE,
                    "subresource": SUBRESOURCE,
                    "namespace": self._namespace,
                    "name": self._name,
                },
            },
        }
        answer = await self._api.request("POST", ACCESS_REVIEWS, body=body)
        if not Reader(answer).object("status").flag("allowed"):
            raise Forbidden(
                f"{account.namespace}/{account.name} may not {VERB} {RESOURCE}/{SUBRESOURCE} of"
                f" {self._namespace}/{self._name}: bind its ServiceAccount to a role with that"
                f" rule (apiGroups: [{GROUP}]) in namespace {self._namespace}"
            )
