"""Changes of the view, told to people."""

from __future__ import annotations

from cluster.api.documents import ViewStepItem
from election.view import ViewStep


def view_step_item(step: ViewStep) -> ViewStepItem:
    """Return one change as the API answers it."""
    return ViewStepItem(
        step.version, step.epoch, step.kind, reason_of(step), step.nodes, step.primary,
        step.in_sync, max(0, step.at_ms),
    )  # fmt: skip


def reason_of(step: ViewStep) -> str:
    """Return what has happened, in a sentence."""
    nodes = ", ".join(step.nodes)
    match step.kind:
        case "bootstrap":
            return f"the cluster was made, with {nodes} as its first primary"
        case "take_over":
            return f"{nodes} took over: {step.previous} was silent"
        case "restart":
            return f"{nodes} became primary again, after its own restart"
        case "handover":
            return f"{step.previous} handed over to {nodes}, as requested or because it was stopped"
        case "removed_from_in_sync":
            return f"{nodes} did not confirm writes in time, and left the in-sync set"
        case "added_to_in_sync":
            return f"{nodes} has caught up, and joined the in-sync set"
        case "member_added":
            return f"{nodes} was added to the cluster"
        case "member_changed":
            return f"{nodes} registered its disk or its addresses"
        case "member_removed":
            return f"{nodes} was removed from the cluster"
