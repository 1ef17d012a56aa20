"""How the tests are run: which first, with how many threads, and how notebooks are compared with their stored outputs.

When `pytest --nbval` runs notebooks again, text, tables and numbers are compared strictly. Not compared: figures, progress
bars, and Markdown, which holds sentences and verdicts computed from trained networks; training takes another course on
another processor.
"""

import os

NOT_COMPARED = ("application/vnd.vegalite.v5+json", "image/png", "image/svg+xml", "text/markdown", "stderr")

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # as many test processes as cores: more threads would wait for one another


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED


def pytest_collection_modifyitems(items):
    """The browser tests at the end: they open notebooks whose networks nbval has trained by then."""
    items.sort(key=lambda item: "browser" in item.path.parts)
