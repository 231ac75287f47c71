"""The report as a page: one HTML file that needs nothing else, for people.

Outcome ──outcome_view──┐
Inspection ──inspection_view──┼──> view: plain data ──render──> page.html, whole or not at all
results of a run ──run_view──┘       (JSON could hold it: a worker process hands it over)

surgery    which nodes a site was, and which it became, laid out for drawing
spectra    singular values of the kernels, with the rank that was kept
class_map  what a fully convolutional model says of a sample image
charts     numbers to places in a drawing
"""

from __future__ import annotations

from convrewrite.page.render import write
from convrewrite.page.views import applied_view, inspection_view, outcome_view, run_view

__all__ = ["applied_view", "inspection_view", "outcome_view", "run_view", "write"]
