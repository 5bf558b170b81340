"""`GET /`: the status as a plain page rendered here, with links, until there is more."""

from html import escape

from aiohttp import web

from comfyd.api.docs import html_page
from comfyd.api.operation import Call, op
from comfyd.api.views import status_view
from comfyd.model.view import InstanceView, StatusView

LINKS = ("api/comfyui/status", "api/comfyui/plan", "environments", "workflows", "tasks", "metrics", "docs")


@op("GET", "/", scope="client", response=None, media="text/html")
async def page(call: Call[None, None]) -> web.Response:
    """The status for people."""
    return html_page("comfyd", _body(status_view(call.context)))


def _body(status: StatusView) -> str:
    issues = "".join(
        f"<li><b>{escape(i.severity)}</b> <code>{escape(i.file)}:{i.line}</code> {escape(i.message)}"
        for i in status.config.issues
    )
    rows = "".join(_row(one) for one in status.instances)
    environments = "".join(
        f"<tr><td>{escape(one.name)}<td>{escape(one.state)}<td>{escape(one.install.step or '')}"
        f"<td>{escape('; '.join(c.message for c in one.conditions))}"
        for one in status.environments
    )
    links = " · ".join(f"<a href='{link}'>{link}</a>" for link in LINKS)
    return (
        f"<h1>comfyd</h1><p>{links}<p>Configuration: {escape(status.config.state)} "
        f"(<code>{escape(status.config.path)}</code>)<ul>{issues}</ul>"
        f"<h2>Instances</h2><table><tr><th>id<th>name<th>environment<th>port<th>state<th>pid<th>why{rows}</table>"
        f"<h2>Environments</h2><table><tr><th>name<th>state<th>step<th>why{environments}</table>"
        f"<p>comfyd {escape(status.version)}, {escape(status.time)}"
    )


def _row(one: InstanceView) -> str:
    why = "; ".join(c.message for c in one.conditions)
    cells = (one.id if one.id is not None else "", one.name, one.environment, one.port, one.state, one.pid, why)
    return "<tr>" + "".join(f"<td>{escape(str('' if cell is None else cell))}" for cell in cells)
