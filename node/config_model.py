"""The shape of a configuration: sections, units, defaults that are safe. Loading and relations: `config.py`.

Every key carries its unit in its name. Nothing that could trade wrongly has a default. A default that follows another
value (a share of the lease's TTL, the address that is listened on) is filled in before validation, so that a checked
Config has no gaps. In `node`, only `config.py` and this module import pydantic.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, parse_qs, urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PrivateAttr,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from cluster.core.errors import ConfigError
from cluster.core.ids import ns
from cluster.core.lease import LeaseRules
from node.risk import ORDERS_BURST_MAX, InstrumentLimits, RateLimit, RiskLimits
from node.types import Instrument

TAKEOVER_ALLOWANCE_S = 1.0
"""From the moment the lease is free to the new leader's first sign of life at the venue, generously."""
VENUE_ADAPTERS = ("paper",)
FEED_ADAPTERS = ("binance",)
"""Those that `node/parts.py` can make."""


# -- kinds of values ----------------------------------------------------------------------------------------


class Secret:
    """A secret by reference, or (in paper mode) as it is. Its text never shows the value."""

    __slots__ = ("_literal", "ref")

    def __init__(self, written: str) -> None:
        kind, _, name = written.partition(":")
        self.ref = written if kind in ("file", "env", "cred") and name else ""
        self._literal = "" if self.ref else written

    @property
    def literal(self) -> bool:
        return not self.ref

    def reveal(self, env: Mapping[str, str] = os.environ) -> str:
        """The value, read now; a line end at its end is dropped. Raises ConfigError, naming the reference."""
        if not self.ref:
            return self._literal
        kind, _, name = self.ref.partition(":")
        if kind == "env":
            if not env.get(name):
                raise ConfigError(f"secret {self.ref}: the environment variable {name} is not set or empty")
            return env[name]
        path = Path(name)
        if kind == "cred":
            folder = env.get("CREDENTIALS_DIRECTORY")
            if not folder:
                raise ConfigError(
                    f"secret {self.ref}: $CREDENTIALS_DIRECTORY is not set; start under systemd with "
                    f"LoadCredential={name}:/path"
                )
            path = Path(folder) / name
        try:
            value = path.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"secret {self.ref}: cannot read {path}: {os_words(e)}") from e
        if not value:
            raise ConfigError(f"secret {self.ref}: {path} is empty")
        return value

    def __str__(self) -> str:
        return self.ref or "***"

    def __repr__(self) -> str:
        return f"Secret({self})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(min_length=1), serialization=core_schema.to_string_ser_schema()
        )


def url_parts(value: str) -> SplitResult:
    """Empty ones for what is no URL at all."""
    try:
        return urlsplit(value)
    except ValueError:  # of brackets
        return urlsplit("")


def os_words(e: Exception) -> str:
    """What went wrong with a file, for people."""
    return e.strerror or str(e) if isinstance(e, OSError) else str(e)


class SecretUrl(Secret):
    """A URL that may carry a password, or a reference to one that does. Shown without the password."""

    @property
    def literal(self) -> bool:
        """Whether a password stands in the file itself."""
        return bool(not self.ref and url_parts(self._literal).password)

    def __str__(self) -> str:
        if self.ref:
            return self.ref
        parts = url_parts(self._literal)
        if not parts.password:
            # What cannot be read as a URL, and an option of one, may hide a password as well.
            return "***" if parts.query or ("@" in self._literal and not parts.netloc) else self._literal
        user = parts.username or ""
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


def _follows() -> Any:
    """Stands for a default that follows other values. It is seen only where those were refused already."""
    return 0


def _split(value: Any) -> Any:
    """`a, b` as a list: for the environment."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _exact(value: Any) -> Any:
    """Money and sizes are decimals as written; a float that came from elsewhere is already another number."""
    if isinstance(value, float | bool):
        raise ValueError(f'write it as a string, like "{value}"')
    return value


def _plain(value: Any) -> Any:
    """Undo what TOML reading did for money: a strategy expects floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _address(value: str) -> str:
    host_port(value)
    return value


def host_port(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be host:port, like 10.0.0.11:7443 or [fd00::1]:7443")
    return host.strip("[]"), int(port)


def is_address(value: Any) -> bool:
    try:
        return bool(host_port(value))
    except (ValueError, AttributeError):
        return False


def is_redis_url(value: str) -> bool:
    """redis-py itself would quietly take database 0 for a path that is no number."""
    parts = url_parts(value)
    if not all(option.startswith("ssl_") for option in parse_qs(parts.query, keep_blank_values=True)):
        return False  # the gate refuses them: they would undo its timeouts
    if parts.scheme == "unix":
        return bool(parts.path)
    database = parts.path.strip("/")
    return _reaches(parts, "redis", "rediss") and (not database or database.isdecimal())


def is_websocket_url(value: str) -> bool:
    parts = url_parts(value)
    return _reaches(parts, "ws", "wss") and not parts.query and not parts.fragment


def _reaches(parts: SplitResult, *schemes: str) -> bool:
    try:
        return parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # of the port
        return False


Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False, le=86_400)]
SecondsOrOff = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False, le=86_400)]
Amount = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, allow_inf_nan=False, max_digits=38)]
Address = Annotated[str, AfterValidator(_address)]
Words = Annotated[list[str], BeforeValidator(_split), Field(min_length=1)]
Symbol = Annotated[str, Field(pattern=r"^[A-Z0-9][A-Z0-9._:/-]{0,31}$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=False)


# -- the sections -------------------------------------------------------------------------------------------


class ClusterConfig(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
    """a-z, 0-9 and hyphens. Names the keys in etcd and Redis; never changed afterwards."""
    order_tag: Annotated[str, Field(pattern=r"^[a-y0-9]{1,4}$", default_factory=_follows)]
    """1 to 4 of a-y, 0-9: the start of every client order id. Default: b and two characters made from `name`.
    Set it where clusters share an account, so that they surely differ; never changed while a journal exists."""
    mode: Literal["paper", "live"] = "paper"
    """live: real orders may leave."""


class NodeConfig(Section):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?$")]
    """Unique in the cluster."""
    data_dir: Path
    """Journal and lock. One directory, one node."""
    grpc_listen: Address = "127.0.0.1:7443"
    grpc_advertise: Address = Field(default_factory=_follows)
    """Where the other nodes find it. Default: grpc_listen."""
    http_listen: Address = "127.0.0.1:8008"
    http_advertise: Address = Field(default_factory=_follows)
    """Where people and load balancers find it. Default: http_listen."""
    priority: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=1000)] = 100
    """The higher one usually leads."""
    never_lead: bool = False


class EtcdConfig(Section):
    endpoints: Words
    """http(s)://host:port of every member."""
    user: str = ""
    password: Secret | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    call_timeout_s: Seconds = Field(default_factory=_follows)
    """For one call to one endpoint. Default: a third of lease.ttl_s - lease.margin_s."""


class LeaseConfig(Section):
    ttl_s: Seconds = 1.0
    """How long a lost leader's lead lasts. At least 0.3."""
    renew_interval_s: Seconds = Field(default_factory=_follows)
    """Default: 0.15 of ttl_s."""
    margin_s: Seconds = Field(default_factory=_follows)
    """How much sooner than ttl_s a leader stops. Default: 0.2 of ttl_s."""
    clock_drift_max: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """How far two hosts' clocks may run apart, as a fraction."""
    send_slack_s: SecondsOrOff = Field(default_factory=_follows)
    """From the last permit check to the socket. Default: 0.1 of ttl_s."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        return _shares_of_ttl(data) if isinstance(data, dict) else data


def _shares_of_ttl(lease: dict[str, Any]) -> dict[str, Any]:
    """[lease] with the defaults that are shares of ttl_s, so that a cluster is tuned by one number."""
    ttl = _number(lease.get("ttl_s", 1.0))
    if ttl is None:
        return lease
    shares = {"renew_interval_s": 0.15, "margin_s": 0.2, "send_slack_s": 0.1}
    return {name: round(share * ttl, 9) for name, share in shares.items()} | lease


class WorkerConfig(Section):
    hang_timeout_s: Seconds = 0.25
    """A worker whose loop does not turn for so long is killed."""
    start_timeout_s: Seconds = 30.0
    """The same before its first heartbeat: imports, journal replay."""
    restart_backoff_min_s: Seconds = 0.05
    restart_backoff_max_s: Seconds = 5.0


class ReplicationConfig(Section):
    insync_timeout_s: Seconds = 0.25
    """A standby later than this is taken out of the in-sync set, and commits go on."""
    min_standbys: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=16)] = 0
    """How many standbys must hold an order before it counts as protected."""
    unprotected: Literal["trade", "halt"] = "trade"
    """What a leader does with fewer than min_standbys in sync."""
    durability: Literal["disk", "memory"] = "disk"
    """memory: an entry is acknowledged before it is on disk."""
    snapshot_every_entries: Annotated[int, BeforeValidator(_no_bool), Field(ge=1000)] = 100_000
    keep_entries: Annotated[int, BeforeValidator(_no_bool), Field(ge=0)] = 200_000
    """Entries kept behind a snapshot, for standbys that catch up and for audits."""
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


class GateConfig(Section):
    url: SecretUrl
    """redis://, rediss:// (TLS) or unix://, or a reference to one."""
    timeout_s: Annotated[float, Field(ge=0.005, le=5)] = 0.1
    claim_ttl_s: Annotated[float, Field(ge=60, le=604_800)] = 3600.0
    """How long a client order id stays claimed."""
    record_max: Annotated[int, BeforeValidator(_no_bool), Field(ge=0)] = 0
    """How many decisions Redis keeps for audits; 0: none."""


class InstrumentRisk(Section):
    """Every limit is inclusive and has no default."""

    max_order_qty: Amount
    max_order_notional: Amount
    """In the quote currency: price times quantity."""
    max_position: Amount
    """Either way, everything pending, open or unknown counted as filled."""
    price_collar_bps: Annotated[int, BeforeValidator(_no_bool), Field(gt=0, lt=10_000)]
    """How far a price may stand from the mid of the latest quote, in 1/10,000."""
    order_types: Words
    """Of limit, post_only, ioc, market."""


class RiskConfig(BaseModel):
    """orders_per_s and orders_burst, and one table of limits per symbol."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, InstrumentRisk] = Field(init=False)

    orders_per_s: Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, le=10_000, decimal_places=3)]
    """Sustained, over all instruments and across failovers."""
    orders_burst: Annotated[int, BeforeValidator(_no_bool), Field(gt=0, le=ORDERS_BURST_MAX)]

    @property
    def instruments(self) -> dict[str, InstrumentRisk]:
        return self.__pydantic_extra__


class InstrumentConfig(Section):
    symbol: Symbol
    """As the venue writes it, upper case."""
    tick_size: Amount
    lot_size: Amount


class VenueConfig(Section):
    adapter: str = "paper"
    target: str
    """Which venue: for paper, host:port of its server."""
    account: Annotated[str, Field(min_length=1)]
    api_key: Secret | None = None
    api_secret: Secret | None = None
    call_timeout_s: Seconds = 0.25
    """No answer for so long: the outcome is unknown."""
    deadman_ttl_s: SecondsOrOff = Field(default_factory=_follows)
    """Resting orders are cancelled by the venue after so long without a leader; 0: off. Default: 10, or more if a
    takeover may take longer."""
    order_validity_s: Seconds = Field(default_factory=_follows)
    """An order that has not reached the venue so long after its decision is not sent. Default: lease.ttl_s."""
    reconcile_interval_s: Seconds = 5.0


class FeedConfig(Section):
    adapter: str = "binance"
    url: str = "wss://stream.binance.com:9443"
    """ws(s)://host:port of the combined streams."""
    stale_after_s: Seconds = 2.0
    """No market message for so long: nothing new is decided."""
    handover_after_s: SecondsOrOff = 3.0
    """A leader without market data for so long hands over to a standby that has them; 0: never."""


class StrategyConfig(Section):
    path: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
    """package.module:Class"""
    config: Annotated[dict[str, Any], AfterValidator(_plain)] = Field(default_factory=dict, repr=False)
    """Handed to the strategy as it is."""


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "json"


class Config(BaseSettings):
    """One node's configuration. Made by `load_config`; what it holds is checked, relations included."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, title="Baton")

    cluster: ClusterConfig
    node: NodeConfig
    etcd: EtcdConfig
    lease: LeaseConfig = Field(default_factory=lambda: LeaseConfig.model_validate({}))
    worker: WorkerConfig = Field(default_factory=WorkerConfig)
    replication: ReplicationConfig = Field(default_factory=ReplicationConfig)
    gate: GateConfig
    risk: RiskConfig
    instruments: Annotated[list[InstrumentConfig], Field(min_length=1)]
    venue: VenueConfig
    feed: FeedConfig = Field(default_factory=FeedConfig)
    strategy: StrategyConfig
    log: LogConfig = Field(default_factory=LogConfig)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_layers(cls, *layers: dict[str, Any]) -> Config:
        """From nested tables, the strongest first. Raises pydantic's ValidationError."""
        make: Any = cls
        made: Config = make(layers=layers)
        return made

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Any,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the layers handed in. `config.py` reads them, not the library, so that the environment follows the
        file's syntax and an unknown name in it is seen."""
        layers = init_settings.init_kwargs["layers"]
        return tuple(InitSettingsSource(settings_cls, init_kwargs=layer) for layer in layers)

    @model_validator(mode="before")
    @classmethod
    def _defaults_from_others(cls, data: Any) -> Any:
        """Defaults that follow another section's value. Anything malformed is left for the sections to refuse."""
        if not isinstance(data, dict):
            return data
        tables = {k: dict(v) for k, v in data.items() if isinstance(v, dict)}
        lease = _shares_of_ttl(tables.get("lease", {}))
        ttl, margin = _number(lease.get("ttl_s", 1.0)), _number(lease.get("margin_s"))
        if ttl is not None and margin is not None and ttl > margin:
            call_timeout = tables.get("etcd", {}).setdefault("call_timeout_s", round((ttl - margin) / 3, 9))
            tables.get("venue", {}).setdefault("order_validity_s", ttl)
            slowest = 2 * ttl + 2 * (_number(call_timeout) or 0) + TAKEOVER_ALLOWANCE_S
            tables.get("venue", {}).setdefault("deadman_ttl_s", max(10.0, round(1.5 * slowest, 3)))
        node, cluster = tables.get("node", {}), tables.get("cluster", {})
        for wire in ("grpc", "http"):
            listen = node.get(f"{wire}_listen", NodeConfig.model_fields[f"{wire}_listen"].default)
            if is_address(listen):  # else one mistake would be told twice
                node.setdefault(f"{wire}_advertise", listen)
        if isinstance(cluster.get("name"), str):
            cluster.setdefault("order_tag", default_order_tag(cluster["name"]))
        return data | tables

    # -- what others need, as plain values ------------------------------------------------------------------

    def lease_rules(self) -> LeaseRules:
        x = self.lease
        return LeaseRules(
            ttl=ns(x.ttl_s),
            margin=ns(x.margin_s),
            renew_interval=ns(x.renew_interval_s),
            clock_drift_max=x.clock_drift_max,
            send_slack=ns(x.send_slack_s),
        )

    def instrument_table(self) -> dict[str, Instrument]:
        return {i.symbol: Instrument(i.symbol, i.tick_size, i.lot_size) for i in self.instruments}

    def risk_limits(self) -> RiskLimits:
        """In lots and tick-lots, rounded down: never more than what is written."""
        limits = {}
        for symbol, i in self.instrument_table().items():
            r = self.risk.instruments[symbol]
            limits[symbol] = InstrumentLimits(
                max_order_lots=int(r.max_order_qty // i.lot_size),
                max_order_notional=int(r.max_order_notional // (i.tick_size * i.lot_size)),
                max_position_lots=int(r.max_position // i.lot_size),
                price_collar_bps=r.price_collar_bps,
                order_kinds=frozenset(r.order_types),
            )
        num, den = self.risk.orders_per_s.as_integer_ratio()
        return RiskLimits(
            limits,
            RateLimit.of(orders_per_s_num=num, orders_per_s_den=den, orders_burst=self.risk.orders_burst),
        )

    def secrets(self) -> dict[str, Secret]:
        """Every secret that is set, by key."""
        found = {
            "etcd.password": self.etcd.password,
            "gate.url": self.gate.url,
            "venue.api_key": self.venue.api_key,
            "venue.api_secret": self.venue.api_secret,
        }
        return {key: secret for key, secret in found.items() if secret is not None}

    def origin(self, key: str) -> str:
        """Where the value of `key` (dotted) comes from: the file, an environment variable, or "default"."""
        return self._origins.get(key, "default")


def default_order_tag(cluster_name: str) -> str:
    """`b` and two characters of [a-y0-9] made from the name."""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxy"
    n = int.from_bytes(blake2b(cluster_name.encode(), digest_size=8).digest(), "big")
    return "b" + alphabet[n % 35] + alphabet[n // 35 % 35]


def _number(value: Any) -> float | None:
    """`value` as the float it will be, or None if it is none."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
