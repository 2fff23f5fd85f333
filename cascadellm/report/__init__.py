"""HTML pages: one self-contained file each, written with the standard library alone."""

from cascadellm.report.traces import load_traces, render_traces, write_report

__all__ = ["load_traces", "render_traces", "write_report"]
