"""The monitor: a page that shows what an app's databases do. See :func:`monitor_blueprint`."""

from .page import Databases, monitor_blueprint, show_in_debug

__all__ = ["Databases", "monitor_blueprint", "show_in_debug"]
