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
    """00 first, which trains the networks that other notebooks read, and beside it what needs none of them and takes long;
    the browser tests last, which open those notebooks."""
    first = ("00_overview.ipynb", "test_publish.py")
    items.sort(key=lambda item: ("browser" in item.path.parts, item.path.name not in first))
