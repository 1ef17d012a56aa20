"""How the tests are run: which first, with how many threads, and how notebooks are compared with their stored outputs.

When `pytest --nbval` runs notebooks again, text, tables and numbers are compared strictly, sentences and verdicts too where
they are drawn from published tables. Not compared: figures, progress bars, what produced an execution, and the Markdown of
the notebooks that compute with networks, which takes other last digits on another processor.
"""

import os

NOT_COMPARED = ("application/vnd.vegalite.v5+json", "image/png", "image/svg+xml", "stderr")
COMPUTED = ("01_training.ipynb", "09_your_own_models.ipynb")

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # as many test processes as cores: more threads would wait for one another


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += NOT_COMPARED
        collector.skip_compare += ("text/markdown",) if collector.path.name in COMPUTED else ()


def pytest_collection_modifyitems(items):
    """00 first, which trains the networks that other notebooks read, and beside it what needs none of them and takes long;
    the browser tests last, which open those notebooks."""
    first = ("00_overview.ipynb", "test_publish.py")
    items.sort(key=lambda item: ("browser" in item.path.parts, item.path.name not in first))
