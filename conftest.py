"""How notebooks are compared with their stored outputs when `pytest --nbval` runs them again.

Text, tables and numbers are compared strictly. Not compared: figures, progress bars, and Markdown, which holds sentences
and verdicts computed from trained networks; training takes another course on another processor.
"""

NOT_COMPARED = ("application/vnd.vegalite.v5+json", "image/png", "image/svg+xml", "text/markdown", "stderr")


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED
