"""How processes are watched, started, stopped and left: watch, loop, supervise, probe. What happens is core's."""
