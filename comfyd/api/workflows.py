"""Which workflows there are, where they run, and which instances could take them now."""

from comfyd.api.context import ApiContext
from comfyd.api.operation import Call, op, under_api
from comfyd.api.wire import Answer
from comfyd.model.desired import EnvironmentSpec
from comfyd.model.observed import Phase


class WorkflowView(Answer):
    """port: of the environment's first declared instance, else its config port."""

    name: str
    environment: str
    port: int | None
    ready_ports: tuple[int, ...]


class WorkflowsAnswer(Answer):
    workflows: tuple[WorkflowView, ...]
    mapping: dict[str, str]


@op("GET", "/workflows", scope="client", response=WorkflowsAnswer, also=under_api("/workflows"))
async def list_workflows(call: Call[None, None]) -> WorkflowsAnswer:
    """Every workflow with its environment and ports."""
    context = call.context
    views: list[WorkflowView] = []
    for environment in context.live.config.get().desired.environments:
        port, ready = _ports(context, environment)
        views += [
            WorkflowView(name=name, environment=environment.name, port=port, ready_ports=ready)
            for name in environment.workflows
        ]
    return WorkflowsAnswer(workflows=tuple(views), mapping={one.name: one.environment for one in views})


def _ports(context: ApiContext, environment: EnvironmentSpec) -> tuple[int | None, tuple[int, ...]]:
    observed = context.live.observed.get()
    declared = [p for p in context.live.resolved.get().processes if p.environment == environment.name and p.spec.port]
    declared.sort(key=lambda p: (p.instance.id if p.instance else 2**31, p.key))
    seen = [observed.process(p.key) for p in declared]
    ready = tuple(sorted(one.port for one in seen if one and one.phase is Phase.READY and one.port))
    return (declared[0].spec.port if declared else environment.port), ready
