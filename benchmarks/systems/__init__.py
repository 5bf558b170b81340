"""The supervision systems that are compared: one small file each, all behind `System`."""

from benchmarks.systems.base import System
from benchmarks.systems.circus import Circus
from benchmarks.systems.comfyd import Comfyd
from benchmarks.systems.floor import Floor
from benchmarks.systems.runit import Runit
from benchmarks.systems.s6 import S6
from benchmarks.systems.supervisor import Supervisor

SYSTEMS: tuple[type[System], ...] = (Comfyd, Floor, S6, Runit, Supervisor, Circus)
