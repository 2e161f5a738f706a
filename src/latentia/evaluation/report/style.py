"""Style of the page of an evaluation: light and dark, from 360 pixels to the width of any screen."""

_FIRST, _CELL = 12.5, 6.9  # rem: the column of names, and at least each other
_FIRST_NARROW, _CELL_NARROW, _NARROW = 7.25, 6.5, 40.0  # the same on a phone, and how wide a phone is

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --band: #c9d8e6;
  --card: #f4f6f8; --shade: #0003; --as-real: #1a7f37; --near: #8a5a00; --far: #b3261e; --beyond: #6639ba;
  --link: #0b57d0; --first: 12.5rem; --cell: 6.9rem; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1318; --ink: #e6eaef; --soft: #9aa5b1; --line: #343c46;
  --band: #35506b; --card: #1a2028; --shade: #fff4; --as-real: #4cc36a; --near: #e0a530; --far: #ff7b72;
  --beyond: #b795ff; --link: #8ab4f8; } figure img { filter: brightness(.92); } }
@media (max-width: 40rem) { :root { --first: 7.25rem; --cell: 6.5rem; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem clamp(1rem, 2.5vw, 3rem) 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
a { color: var(--link); }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0; }
dt, small { color: var(--soft); font-size: .8rem; font-weight: 400; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: .9rem 0 0; padding: .5rem .75rem; background: var(--card); border-radius: 6px; overflow-x: auto;
  font-size: .85rem; }
.row { display: flex; gap: 1rem; overflow-x: auto; margin-top: 1rem; padding-bottom: .5rem; align-items: flex-start; }
figure { margin: 0; } figure img { display: block; max-width: 100%; border-radius: 4px; background: #fff; }
figcaption { margin-top: .35rem; overflow-wrap: anywhere; font-size: .85rem; }
.card { flex: 1 0 7.25rem; max-width: 15rem; } .card img { width: 100%; } .card small { display: block; }
.card:first-child { position: relative; }
.card:first-child::after { content: ""; position: absolute; inset: 0 -.55rem 0 auto;
  border-right: 1px solid var(--line); }
.keys { display: flex; flex-wrap: wrap; gap: .15rem 1.4rem; list-style: none; margin: 0 0 .75rem; padding: 0;
  color: var(--soft); font-size: .85rem; }
.keys li { display: flex; align-items: center; gap: .45rem; } .keys b { color: var(--ink); }
.hint { display: none; margin: 0 0 .4rem; color: var(--soft); font-size: .85rem; }
.board, .row { scrollbar-width: thin; scrollbar-color: var(--soft) transparent;
  background: linear-gradient(to right, var(--page) 40%, transparent) 0 0 / 3rem 100% local no-repeat,
  linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 3rem 100% local no-repeat,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 1rem 100% scroll no-repeat,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 1rem 100% scroll no-repeat; }
.board { overflow-x: auto; border-top: 1px solid var(--line); padding-bottom: .5rem; }
table { border-collapse: collapse; table-layout: fixed; width: min(100%, calc(16rem + 15rem * var(--columns)));
  min-width: calc(var(--first) + var(--cell) * var(--columns)); font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  font-weight: 400; }
thead th { font-weight: 600; vertical-align: bottom; overflow-wrap: anywhere; border-bottom-color: var(--soft); }
thead td { border-bottom-color: var(--soft); }
tr > :first-child { width: var(--first); text-align: left; padding-left: 0; position: sticky; left: 0; z-index: 1;
  background: var(--page); }
th small, td small { display: block; line-height: 1.3; }
td.best, td.tied { font-weight: 700; } abbr { text-decoration: none; margin-right: .35rem; font-weight: 700; }
td.real { color: var(--soft); }
svg { display: block; margin: .25rem 0 0 auto; overflow: visible; } .keys svg{ margin: 0; }
.band { fill: var(--band); } .line { stroke: currentColor; stroke-width: 2; fill: none; }
.full { fill: currentColor; } .ring { fill: var(--page); stroke: currentColor; stroke-width: 2; }
.as-real svg { color: var(--as-real); } .near svg { color: var(--near); }
.far svg { color: var(--far); } .beyond svg { color: var(--beyond); }
summary { cursor: pointer; } .term summary { list-style: none; text-decoration: underline dotted var(--soft);
  text-underline-offset: .2em; } .term summary::-webkit-details-marker { display: none; }
.term p { margin: .25rem 0; color: var(--soft); font-size: .85rem; }
.group { min-width: calc(var(--first) + var(--cell) * var(--columns)); }
.group > summary, .figures > summary { padding: .5rem 0; } .group > summary { position: sticky; left: 0;
  width: fit-content; max-width: calc(100vw - 2rem); }
.notes { margin: 0; padding-left: 1.2rem; max-width: 60rem; color: var(--soft); }
.figures .row { margin-top: 0; } .figures figure { flex: 0 0 auto; max-width: 90vw; }
.samples img, .neighbours img { max-height: 30rem; width: auto; } .features img, .classes img { width: 42rem; }
.wide img { width: 60rem; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
@media print { details::details-content { content-visibility: visible; } .board, .row { overflow: visible; } }
"""


def scroll_hint(columns: int) -> str:
    """CSS that shows the hint where so many columns of the table do not fit the screen.

    Example:
        >>> scroll_hint(3)
        '@media (max-width: 28.75rem) { .hint { display: block; } }'
    """
    narrow = _FIRST_NARROW + _CELL_NARROW * columns + 2  # with the margins
    wide = (_FIRST + _CELL * columns) / 0.95
    limit = wide if wide > _NARROW else min(_NARROW, narrow)
    return f"@media (max-width: {limit:.4g}rem) {{ .hint {{ display: block; }} }}"
