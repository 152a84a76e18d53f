"""The gRPC and REST transports of one vault."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import grpc
import msgspec
from google.cloud.secretmanager_v1.types import service
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from httpguard import Limits, Refusal, check_json, read_body
from localcloud.secrets import vault as vaults
from localcloud.secrets.errors import SecretError, invalid, unkept
from localcloud.secrets.vault import Vault

log = logging.getLogger(__name__)

SERVICE = "google.cloud.secretmanager.v1.SecretManagerService"
LIMITS = Limits(body_bytes=256 << 10)
"""Room for a payload of 64 KiB in base64 and the rest of its request."""

Rpc = Callable[[Any], Any]

_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


def methods(vault: Vault) -> dict[str, tuple[Any, Any, Rpc]]:
    """Return each RPC by name, with its request class, its response class and its function."""
    secret, version = vaults.Secret, vaults.SecretVersion
    table: dict[str, tuple[Any, Any, Rpc]] = {
        "CreateSecret": (service.CreateSecretRequest, secret, vault.create_secret),
        "GetSecret": (service.GetSecretRequest, secret, vault.get_secret),
        "ListSecrets": (service.ListSecretsRequest, vaults.ListSecretsResponse, vault.list_secrets),
        "UpdateSecret": (service.UpdateSecretRequest, secret, vault.update_secret),
        "DeleteSecret": (service.DeleteSecretRequest, Empty, vault.delete_secret),
        "AddSecretVersion": (service.AddSecretVersionRequest, version, vault.add_secret_version),
        "GetSecretVersion": (service.GetSecretVersionRequest, version, vault.get_secret_version),
        "ListSecretVersions": (
            service.ListSecretVersionsRequest,
            vaults.ListVersionsResponse,
            vault.list_secret_versions,
        ),
        "AccessSecretVersion": (
            service.AccessSecretVersionRequest,
            vaults.AccessResponse,
            vault.access_secret_version,
        ),
        "EnableSecretVersion": (service.EnableSecretVersionRequest, version, vault.enable_secret_version),
        "DisableSecretVersion": (service.DisableSecretVersionRequest, version, vault.disable_secret_version),
        "DestroySecretVersion": (service.DestroySecretVersionRequest, version, vault.destroy_secret_version),
    }
    return {name: (request._meta.pb, response, rpc) for name, (request, response, rpc) in table.items()}


class GrpcHandlers(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]  # The stubs leave it untyped.
    """Handlers for every RPC of the service. Unsupported ones answer UNIMPLEMENTED and are logged."""

    def __init__(self, vault: Vault) -> None:
        """Serve this vault."""
        self._handlers = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(
                _over_grpc(rpc), request.FromString, response.SerializeToString
            )
            for name, (request, response, rpc) in methods(vault).items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler for a path; None for paths of other services."""
        path = handler_call_details.method
        found = self._handlers.get(path)
        if found is None and path.startswith(f"/{SERVICE}/"):
            log.warning("%s is not supported by localcloud.", path)
        return found


def _over_grpc(rpc: Rpc) -> Callable[[Any, grpc.aio.ServicerContext], Any]:
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return rpc(request)
        except SecretError as error:
            if error.code is grpc.StatusCode.UNIMPLEMENTED:
                log.warning("Secret Manager: %s", error.message)
            return await context.abort(error.code, error.message)

    return handle


def rest_routes(vault: Vault) -> list[BaseRoute]:
    """Return REST routes as production maps them: `/v1/projects/P/secrets/S/versions/V:access`."""
    rpcs = methods(vault)
    secrets = "/v1/projects/{project}/secrets"
    one = secrets + "/{secret}"
    version = one + "/versions/{version}"
    table: Sequence[tuple[str, str, str, str, str | None]] = (
        # HTTP method, path, RPC, the field from the path, the field from the body.
        ("POST", secrets, "CreateSecret", "parent", "secret"),
        ("GET", secrets, "ListSecrets", "parent", None),
        ("POST", one + ":addVersion", "AddSecretVersion", "parent", ""),
        ("GET", one, "GetSecret", "name", None),
        ("PATCH", one, "UpdateSecret", "secret.name", "secret"),
        ("DELETE", one, "DeleteSecret", "name", None),
        ("GET", one + "/versions", "ListSecretVersions", "parent", None),
        ("GET", version + ":access", "AccessSecretVersion", "name", None),
        ("POST", version + ":enable", "EnableSecretVersion", "name", ""),
        ("POST", version + ":disable", "DisableSecretVersion", "name", ""),
        ("POST", version + ":destroy", "DestroySecretVersion", "name", ""),
        ("GET", version, "GetSecretVersion", "name", None),
    )
    routes: list[BaseRoute] = [
        Route(path, _over_rest(*rpcs[name][::2], path_field, body_field, verb=path.partition(":")[2]), methods=[method])
        for method, path, name, path_field, body_field in table
    ]
    others = (secrets + "{rest:path}", "/v1/projects/{project}/locations/{location}/secrets{rest:path}")
    return routes + [Route(path, _unkept, methods=["GET", "POST", "PATCH", "PUT", "DELETE"]) for path in others]


def _over_rest(request_class: Any, rpc: Rpc, path_field: str, body_field: str | None, *, verb: str) -> Any:
    async def handle(request: Request) -> Response:
        if request.url.path.partition(":")[2] != verb:
            return await _unkept(request)
        try:
            message = await _read(request, request_class, path_field, body_field)
            answer = MessageToDict(rpc(message), use_integers_for_enums=True)
        except SecretError as error:
            return _error(error)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return handle


async def _read(request: Request, request_class: Any, path_field: str, body_field: str | None) -> Any:
    """Build the request message from the path, the query and the body."""
    fields: dict[str, Any] = {}
    for key, value in parse_qsl(request.url.query, keep_blank_values=True):
        if not key.startswith("$"):  # `$alt=json;enum-encoding=int` is about the answer.
            _put(fields, key.split("."), value)
    if body_field is not None:
        body = await _body(request)
        if body_field:
            fields[body_field] = {**fields.get(body_field, {}), **body}
        else:
            fields.update(body)
    name = request.url.path.removeprefix("/v1/").partition(":")[0]
    if path_field == "parent":
        name = name.removesuffix("/secrets").removesuffix("/versions")
    _put(fields, path_field.split("."), name)
    try:
        return ParseDict(fields, request_class())
    except (ParseError, ValueError) as error:
        # The error may quote the payload; name its class only.
        raise invalid(f"Invalid JSON payload received ({type(error).__name__}).") from error


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await read_body(request.headers, request.receive, LIMITS)
        check_json(body)
        parsed: dict[str, Any] = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except Refusal as refusal:
        raise invalid(refusal.message) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid("Invalid JSON payload received.") from error
    return parsed


def _put(fields: dict[str, Any], path: Sequence[str], value: str) -> None:
    inner = fields
    for step in path[:-1]:
        inner = inner.setdefault(step, {})
        if not isinstance(inner, dict):
            raise invalid("Malformed query.")
    inner[path[-1]] = value


async def _unkept(request: Request) -> Response:
    return _error(unkept(f"{request.method} {request.url.path}"))


def _error(error: SecretError) -> Response:
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        log.warning("Secret Manager: %s", error.message)
    status = _HTTP_STATUS[error.code]
    body: Mapping[str, Any] = {"error": {"code": status, "message": error.message, "status": error.code.name}}
    return Response(msgspec.json.encode(body), status, media_type="application/json")
