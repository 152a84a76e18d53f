"""Validation of a subscription, and production's defaults.

Source: the field comments of `google.pubsub.v1.Subscription` and https://cloud.google.com/pubsub/quotas, read
2026-11-23. Expiration policies are stored and returned, but no subscription expires for being idle.
"""

import ipaddress
from urllib.parse import urlsplit

from localcloud.pubsub import names
from localcloud.pubsub.errors import invalid
from localcloud.pubsub.filters import parse_filter
from localcloud.pubsub.topics import check_retention, refuse_missing
from localcloud.pubsub.wire import MICROS, Raw, Subscription, duration, duration_us

ACK_DEADLINE_S_DEFAULT, ACK_DEADLINE_S_MIN, ACK_DEADLINE_S_MAX = 10, 10, 600
RETENTION_S_DEFAULT = 7 * 24 * 3600
EXPIRATION_S_DEFAULT, EXPIRATION_S_MIN = 31 * 24 * 3600, 24 * 3600
BACKOFF_S_MIN_DEFAULT, BACKOFF_S_MAX_DEFAULT, BACKOFF_S_LIMIT = 10, 600, 600
ATTEMPTS_DEFAULT, ATTEMPTS_MIN, ATTEMPTS_MAX = 5, 5, 100
PUSH_ENDPOINT_LENGTH_MAX = 2048

MUTABLE = frozenset(
    {
        "ack_deadline_seconds",
        "dead_letter_policy",
        "enable_exactly_once_delivery",
        "expiration_policy",
        "labels",
        "message_retention_duration",
        "push_config",
        "retain_acked_messages",
        "retry_policy",
    }
)
NOT_HERE = ("bigquery_config", "bigtable_config", "cloud_storage_config", "message_transforms")


def complete(subscription: Raw) -> None:
    """Check a new or changed subscription and fill in production's defaults."""
    names.check_labels(subscription.labels)
    refuse_missing(subscription, NOT_HERE)
    parse_filter(subscription.filter)
    _complete_deadline(subscription)
    _complete_retention(subscription)
    _complete_retry(subscription)
    _complete_dead_letter(subscription)
    check_push(subscription.push_config)
    if subscription.enable_exactly_once_delivery and subscription.push_config.push_endpoint:
        raise invalid("Exactly-once delivery is supported by pull subscriptions only.")
    subscription.push_config.SetInParent()
    subscription.state = Subscription.State.ACTIVE


def check_push(push_config: Raw) -> None:
    """Refuse an endpoint that is not a URL, or that is not on this machine."""
    endpoint = push_config.push_endpoint
    if not endpoint:
        if push_config.HasField("oidc_token") or push_config.HasField("no_wrapper"):
            raise invalid("push_config needs a push_endpoint.")
        return
    try:
        url = urlsplit(endpoint)
        host, _ = url.hostname, url.port  # Reading the port checks it.
    except ValueError as error:
        raise invalid(f"Unsupported push_endpoint: {endpoint[:200]}") from error
    if url.scheme not in {"http", "https"} or not host or len(endpoint) > PUSH_ENDPOINT_LENGTH_MAX:
        raise invalid(f"Unsupported push_endpoint: {endpoint[:200]}")
    if not _is_loopback(host):
        raise invalid(f"localcloud pushes to this machine only; {host} is not a loopback address.")
    if push_config.HasField("oidc_token") and not push_config.oidc_token.service_account_email:
        raise invalid("oidc_token needs a service_account_email.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _complete_deadline(subscription: Raw) -> None:
    if subscription.ack_deadline_seconds == 0:
        subscription.ack_deadline_seconds = ACK_DEADLINE_S_DEFAULT
    if not ACK_DEADLINE_S_MIN <= subscription.ack_deadline_seconds <= ACK_DEADLINE_S_MAX:
        raise invalid(
            f"Invalid ack deadline given: {subscription.ack_deadline_seconds}. "
            f"It must be between {ACK_DEADLINE_S_MIN} and {ACK_DEADLINE_S_MAX} seconds."
        )


def _complete_retention(subscription: Raw) -> None:
    if not subscription.HasField("message_retention_duration"):
        subscription.message_retention_duration.CopyFrom(duration(RETENTION_S_DEFAULT))
    check_retention(duration_us(subscription.message_retention_duration))
    if not subscription.HasField("expiration_policy"):
        subscription.expiration_policy.ttl.CopyFrom(duration(EXPIRATION_S_DEFAULT))
    ttl = subscription.expiration_policy.ttl
    if subscription.expiration_policy.HasField("ttl") and duration_us(ttl) < EXPIRATION_S_MIN * MICROS:
        raise invalid(f"expiration_policy.ttl must be at least {EXPIRATION_S_MIN} seconds.")


def _complete_retry(subscription: Raw) -> None:
    if not subscription.HasField("retry_policy"):
        return
    retry = subscription.retry_policy
    if not retry.HasField("minimum_backoff"):
        retry.minimum_backoff.CopyFrom(duration(BACKOFF_S_MIN_DEFAULT))
    if not retry.HasField("maximum_backoff"):
        retry.maximum_backoff.CopyFrom(duration(BACKOFF_S_MAX_DEFAULT))
    least, most = duration_us(retry.minimum_backoff), duration_us(retry.maximum_backoff)
    if not 0 <= least <= most <= BACKOFF_S_LIMIT * MICROS:
        raise invalid(f"Retry backoffs must satisfy 0 <= minimum <= maximum <= {BACKOFF_S_LIMIT} seconds.")


def _complete_dead_letter(subscription: Raw) -> None:
    if not subscription.HasField("dead_letter_policy"):
        return
    policy = subscription.dead_letter_policy
    names.check_name("topics", policy.dead_letter_topic)
    if policy.max_delivery_attempts == 0:
        policy.max_delivery_attempts = ATTEMPTS_DEFAULT
    if not ATTEMPTS_MIN <= policy.max_delivery_attempts <= ATTEMPTS_MAX:
        side, bound = (
            ("small", f"minimum value is {ATTEMPTS_MIN}")
            if policy.max_delivery_attempts < ATTEMPTS_MIN
            else ("large", f"maximum value is {ATTEMPTS_MAX}")
        )
        raise invalid(
            f"The value for max_delivery_attempts is too {side}. "
            f"You passed {policy.max_delivery_attempts} in the request, but the {bound}."
        )
