"""A panel for Flask-DebugToolbar: the queries of the request whose page shows it."""

from __future__ import annotations

from flask import Flask, current_app, url_for
from flask_debugtoolbar.panels import DebugPanel

from ..contexts import current_tally
from .page import NAME, recording_of, templates
from .recording import Entry


class QueriesPanel(DebugPanel):
    """Put ``"flask_pgmonkey.monitor.toolbar.QueriesPanel"`` into ``DEBUG_TB_PANELS``."""

    name = "PGMonkey"
    has_content = True

    @classmethod
    def init_app(cls, app: Flask) -> None:
        """Record the app's queries from now on."""
        recording_of(app).start()

    def nav_title(self) -> str:
        return "Queries"

    def nav_subtitle(self) -> str:
        tally = current_tally()
        if tally is None or not tally.queries:
            return "none"
        return f"{tally.queries} in {tally.seconds * 1000:.1f} ms"

    def title(self) -> str:
        return "Queries"

    def url(self) -> str:
        return ""

    def content(self) -> str:
        is_shown = f"{NAME}.query" in current_app.view_functions
        return (
            templates()
            .get_template("toolbar.html")
            .render(
                entries=_entries(),
                url=(lambda number: url_for(f"{NAME}.query", number=number)) if is_shown else None,
            )
        )


def _entries() -> list[Entry]:
    """The queries of this request."""
    tally, app = current_tally(), current_app._get_current_object()  # type: ignore[attr-defined]
    return [entry for entry in list(recording_of(app).rings.queries) if entry.query.tally is tally]
