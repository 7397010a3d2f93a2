"""How the site is made: `make site`, or `sphinx-build -W docs docs/_build/html`.

Most pages are the files beside this one. `extensions/` brings the lessons, the cards of what ships and the command
line, formulas that need no network, and docstrings as they are written here.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

project = "minipeft"
author = "the minipeft authors"
copyright = "the minipeft authors, MIT licence"
html_title = "minipeft"
html_show_sphinx = False

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "gathered",
    "docstrings",
    "formulas",
]
exclude_patterns = ["_build", "extensions", "results"]

# Pages: headings down to the third level can be linked to; two dollars mean a formula in the lessons and nothing else.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# The notebooks are committed as they ran, and are not run again.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_text_lexer = "text"

highlight_language = "bash"  # of blocks that name none
smartquotes = False  # --batch in a text stays as it is

# A docstring's `name` leads to what has that name in the package; where nothing has, it is plain code.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}  # light or dark as the reader's machine is set
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "svg"
html_copy_source = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field stands in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
copybutton_exclude = ".linenos, .gp, .go"
