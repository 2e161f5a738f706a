"""HTML page of a blind comparison: one file without network, for screen, phone, keyboard and paper."""

import html

# `default-src 'none'` keeps the page from loading or sending anything, whatever is in it.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Image comparison</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; max-width: max(44rem, calc(2 * @WIDTH@px + 8rem)); padding: 1rem;
  font: 1.1rem/1.5 system-ui, sans-serif; color: #222; background: #eee; text-align: center; }
h1 { font-size: 1.3rem; }
button, input, #save { font: inherit; min-height: 48px; min-width: 48px; padding: .4rem 1rem; border-radius: .5rem;
  border: 2px solid #555; background: #fff; color: #222; }
:focus-visible { outline: 4px solid #0b57d0; outline-offset: 3px; }
#save { display: inline-block; }
#trials { list-style: none; margin: 0; padding: 0; }
.pair { display: flex; gap: 1rem; justify-content: center; }
.pair button { flex: 0 1 max(20rem, calc(@WIDTH@px + 2rem)); padding: .75rem; cursor: pointer; }
.pair button:hover { border-color: #0b57d0; }
.pair img { display: block; width: 100%; height: auto; image-rendering: @RENDERING@; margin-bottom: .5rem; }
progress { width: 100%; height: 1rem; }
textarea { width: 100%; box-sizing: border-box; font: .8rem monospace; }
.live #trials li:not(.now), .paper, [hidden] { display: none !important; }
@media print {
  body { max-width: none; background: #fff; font-size: 11pt; }
  #start, #bar, #end, .help { display: none !important; }
  #trials, .paper { display: block !important; }
  #trials li, .live #trials li:not(.now) { display: inline-block !important; width: 48%; break-inside: avoid;
    margin-bottom: 1.2em; }
  .pair button { border: 0; padding: 0; flex-basis: 4cm; }
}
</style>
</head>
<body data-sheet="@SHEET@">
<main>
<h1>@QUESTION@</h1>
<noscript><p>To vote here, open this page in a browser with scripts switched on. It can also be printed.</p>
</noscript>
<p class="paper">Sheet @SHEET@ &middot; Rater: ______________ &middot; Tick one box of each pair.</p>
<form id="start" hidden>
<p class="help">@COUNT@ pairs. Choose one image of each, also if you have to guess: with the buttons, or with the
arrow keys &larr; and &rarr;. Nothing leaves this page; at the end you save a file and hand it back.</p>
<p><label for="rater">Your name or a code, letters and digits</label><br>
<input id="rater" required maxlength="40" pattern="[A-Za-z0-9_\\-]+" autocomplete="off">
<button>Start</button></p>
</form>
<div id="bar" hidden>
<progress id="progress" max="@COUNT@" value="0" aria-label="Pairs answered"></progress>
<p><span id="where" role="status"></span> <button type="button" id="back">One back</button></p>
</div>
<ol id="trials">
@TRIALS@
</ol>
<section id="end" hidden>
<p role="status">Thank you, that was the last pair.</p>
<p><a id="save" download="votes.csv" href="#end">Save votes.csv</a></p>
<p><label for="text">If saving does not work here, copy this text and send it:</label>
<textarea id="text" rows="6" readonly></textarea></p>
<p><button type="button" id="again">One back</button></p>
</section>
</main>
<script>
"use strict";
const byId = (id) => document.getElementById(id);
const sheet = document.body.dataset.sheet;
const trials = Array.from(document.querySelectorAll("#trials li"));
let votes = [], rater = "", started = false;

// A reload must not cost the votes given so far; where storage is refused the page works without.
const slot = () => `${sheet} ${rater}`;
function store() {
  try { localStorage.setItem(slot(), votes.join(" ")); } catch (error) { /* not stored */ }
}
function restore() {
  try { votes = localStorage.getItem(slot()).split(" ").filter((choice) => choice).slice(0, trials.length); }
  catch (error) { votes = []; }
}
function csv() {
  const rows = votes.map((choice, i) => [sheet, rater, trials[i].dataset.trial, choice].join(","));
  return ["sheet,rater,trial,choice", ...rows].join("\\n") + "\\n";
}
function show() {
  const done = votes.length >= trials.length;
  byId("start").hidden = started;
  byId("bar").hidden = !started || done;
  byId("end").hidden = !started || !done;
  trials.forEach((item, i) => item.classList.toggle("now", started && i === votes.length));
  byId("progress").value = votes.length;
  byId("where").textContent = `Pair ${Math.min(votes.length + 1, trials.length)} of ${trials.length}`;
  byId("back").disabled = votes.length === 0;
  if (started && done) {
    byId("text").value = csv();
    byId("save").href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
    byId("save").download = `votes_${rater}.csv`;
    byId("save").focus();
  }
}
let ready = 0;  // A key that is held down, or pressed twice, must not answer the next pair unseen.
function vote(choice) {
  if (!started || votes.length >= trials.length || Date.now() < ready) return;
  ready = Date.now() + 250;
  votes.push(choice);
  store();
  show();
}
function back() {
  votes.pop();
  store();
  show();
}
trials.forEach((item) => item.querySelectorAll("button").forEach((button) => {
  button.addEventListener("click", (event) => {
    vote(button.value);
    const next = document.querySelector(`#trials .now button[value=${button.value}]`);
    if (event.detail === 0 && next) next.focus(); else button.blur();  // 0: chosen by keyboard
  });
}));
byId("back").addEventListener("click", back);
byId("again").addEventListener("click", back);
byId("start").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = byId("rater").value.trim();
  started = true;
  restore();
  show();
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || !started || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") { event.preventDefault(); vote("left"); }
  if (event.key === "ArrowRight") { event.preventDefault(); vote("right"); }
});
document.body.classList.add("live");
show();
</script>
</body>
</html>
"""
_TRIAL = """<li data-trial="@N@"><div class="pair">
<button type="button" value="left"><img alt="Pair @N@, left image" src="@LEFT@">Left</button>
<button type="button" value="right"><img alt="Pair @N@, right image" src="@RIGHT@">Right</button>
</div><p class="paper">@N@: &#9744; left &nbsp; &#9744; right</p></li>"""


def page(question: str, sheet: str, pairs: list[tuple[str, str]], width: int, enlarged: bool) -> str:
    """The HTML of a sheet.

    Args:
        question: what the rater decides; plain text.
        sheet: identifies the sheet in the votes.
        pairs: the left and the right image of each trial, as data URIs.
        width: of the images in pixels, which they take where the screen is wide enough.
        enlarged: whether their pixels were repeated; then the browser does not blur them either.

    Example:
        >>> page("Which is real?", "ab12", [("data:,a", "data:,b")], 8, True).count("<img")
        2
    """
    rows = [
        _TRIAL.replace("@N@", str(number)).replace("@LEFT@", left).replace("@RIGHT@", right)
        for number, (left, right) in enumerate(pairs, 1)
    ]
    values = {
        "SHEET": sheet,
        "COUNT": str(len(pairs)),
        "WIDTH": str(width),
        "RENDERING": "pixelated" if enlarged else "auto",
        "TRIALS": "\n".join(rows),
        "QUESTION": html.escape(question),  # last: it may hold any text
    }
    filled = _PAGE
    for name, value in values.items():
        filled = filled.replace(f"@{name}@", value)
    return filled
