"""All results of a folder as one self-contained page of HTML with interactive charts."""

from vivit_bench.report.page.page import Page, check_packages, collect, html_of

__all__ = ["Page", "check_packages", "collect", "html_of"]
