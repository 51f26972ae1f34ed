"""Every event of the log as a frozen dataclass. Importing this package registers them all."""

from streams.events.assets import AssetChanged, AssetDisk, AssetNic, HostDefined
from streams.events.audit import CallAudited
from streams.events.base import REGISTRY, Event, Problem, Stamp
from streams.events.capture import CommitsRecorded, Encryption, EpochStarted, LineageStarted, Part
from streams.events.commands import CommandRequested
from streams.events.copies import ScratchChanged, TableRollbackChanged, TableRollbackPlanned
from streams.events.health import HealthReported
from streams.events.inventory import SourceChanged, SourceDefined, TokenIssued, TokenRevoked
from streams.events.jobs import FINAL_STATES, JobChanged
from streams.events.nodes import NodeChanged
from streams.events.policies import PolicyDefined, PolicyRemoved, PolicyRun
from streams.events.protection import ProtectionChanged
from streams.events.repository import (
    CollectionChanged,
    DiskSealed,
    PointDropped,
    PointMarked,
    PointSealed,
    ReferencesRecorded,
    RepositoryChecked,
    RepositoryDefined,
    SessionClosed,
    SessionFenced,
    SessionOpened,
    Ticked,
)
from streams.events.rollbacks import Dependant, OrdinalRange, RollbackChanged, RollbackPlanned, TableEffect
from streams.events.schema import SchemaRecorded, TableDefinition
from streams.events.timeline import GranuleClosed, GranuleKeys, KeyedTable, Landmark, TableCount

__all__ = [
    "FINAL_STATES",
    "REGISTRY",
    "AssetChanged",
    "AssetDisk",
    "AssetNic",
    "CallAudited",
    "CollectionChanged",
    "CommandRequested",
    "CommitsRecorded",
    "Dependant",
    "DiskSealed",
    "Encryption",
    "EpochStarted",
    "Event",
    "GranuleClosed",
    "GranuleKeys",
    "HealthReported",
    "HostDefined",
    "JobChanged",
    "KeyedTable",
    "Landmark",
    "LineageStarted",
    "NodeChanged",
    "OrdinalRange",
    "Part",
    "PointDropped",
    "PointMarked",
    "PointSealed",
    "PolicyDefined",
    "PolicyRemoved",
    "PolicyRun",
    "Problem",
    "ProtectionChanged",
    "ReferencesRecorded",
    "RepositoryChecked",
    "RepositoryDefined",
    "RollbackChanged",
    "RollbackPlanned",
    "SchemaRecorded",
    "ScratchChanged",
    "SessionClosed",
    "SessionFenced",
    "SessionOpened",
    "SourceChanged",
    "SourceDefined",
    "Stamp",
    "TableCount",
    "TableDefinition",
    "TableEffect",
    "TableRollbackChanged",
    "TableRollbackPlanned",
    "Ticked",
    "TokenIssued",
    "TokenRevoked",
]
