"""How long dispatch waits for what. Seconds; tests hand in their own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """poll_s: between two looks at a running prompt. request_s: one request. submit_s: POST /prompt (validation).

    connect_s: for the websocket before a prompt is posted anyway. reconnect_s: between a closed websocket and the
    next (ComfyUI forgets a new one if the old one is still being cleaned up). quiet_s: without an event of a prompt
    that runs the websocket is taken for deaf; doubled up to quiet_max_s.
    ask_s: between two questions after a prompt of unknown fate; absences: answers "not there" until that is believed.
    unreachable_s: a post that was never sent is tried this long. first_pass_s: for control's first look at boot.
    look_s: after a cancel. release_s: for the last commits at shutdown. forget_s: ended prompts are gathered this long
    before ComfyUI is told to forget them. device_rest_s: after a device error, so that another instance comes first.
    cancels_s: between two looks for cancelled tasks when tasks come quickly.
    """

    poll_s: float = 2.0
    request_s: float = 10.0
    submit_s: float = 30.0
    connect_s: float = 2.0
    reconnect_s: float = 1.0
    quiet_s: float = 10.0
    quiet_max_s: float = 60.0
    ask_s: float = 1.0
    absences: int = 3
    unreachable_s: float = 15.0
    first_pass_s: float = 30.0
    look_s: float = 0.2
    release_s: float = 5.0
    forget_s: float = 1.0
    device_rest_s: float = 1.0
    full_disk_rest_s: float = 30.0  # after outputs found no space: each try costs a whole run of the graph
    cancels_s: float = 0.05
