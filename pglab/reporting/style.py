"""The page's style. Every rule is under `.pglab`, so that a fragment does not restyle the notebook around it."""

from __future__ import annotations

LIGHT = {
    "bg": "#ffffff", "fg": "#1d2228", "quiet": "#5d6771", "rule": "#e2e6ea", "soft": "#f5f7f9", "warn": "#8a4b00", "link": "#0b62a3",
    "warnbg": "#fff6e6", "c0": "#0072b2", "c1": "#d55e00", "c2": "#009e73", "c3": "#c2609c", "c4": "#3a9bd9",
    "c5": "#c98a00", "c6": "#333333",
}  # fmt: skip
DARK = {
    "bg": "#14181c", "fg": "#e6e9ec", "quiet": "#9aa5b0", "rule": "#2c343b", "soft": "#1b2126", "warn": "#ffc774", "link": "#6fb8ee",
    "warnbg": "#2b2417", "c0": "#4da9e6", "c1": "#ff8c42", "c2": "#2fc9a0", "c3": "#e697c8", "c4": "#93d0f5",
    "c5": "#f2bd4b", "c6": "#dddddd",
}  # fmt: skip

RULES = """
.pglab{background:var(--bg);color:var(--fg);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 overflow-wrap:anywhere;color-scheme:light dark}
.pglab main{max-width:1140px;margin:0 auto;padding:2.6rem 1.5rem 4rem}
.pglab header{border-bottom:1px solid var(--rule);padding-bottom:1.3rem;margin-bottom:1.6rem}
.pglab .kicker{color:var(--quiet);font-size:.82rem;letter-spacing:.04em;margin:0}
.pglab h1{font-size:clamp(1.7rem,4.5vw,2.5rem);line-height:1.15;margin:.15rem 0 .5rem;font-weight:650;letter-spacing:-.02em}
.pglab h2{font-size:1.55rem;margin:2.6rem 0 .4rem;letter-spacing:-.01em;font-weight:640}
.pglab h3{font-size:1.12rem;margin:2rem 0 .3rem;font-weight:620}
.pglab h4{font-size:.95rem;margin:1.5rem 0 .4rem;font-weight:600}
.pglab p{margin:.4rem 0;max-width:46rem}
.pglab .finding{font-size:1.06rem}
.pglab .quiet,.pglab figcaption,.pglab small{color:var(--quiet);font-size:.85rem}
.pglab small{font-size:.78rem;display:block}
.pglab nav a{color:var(--link);margin-right:1.1rem;text-decoration:none}
.pglab nav a:hover{text-decoration:underline}
.pglab .panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:1.2rem 1.6rem;margin:1rem 0 .4rem}
.pglab figure{margin:0;min-width:0}
.pglab figure.alone{max-width:640px}
.pglab figcaption{margin:0 0 .2rem;color:var(--fg);font-weight:560}
.pglab svg.panel{width:100%;height:auto;display:block}
.pglab svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--quiet)}
.pglab svg .label{font-size:12.5px}
.pglab .grid{stroke:var(--rule);stroke-width:1}
.pglab .axis{stroke:var(--quiet);stroke-width:1;opacity:.6}
.pglab .level{stroke:var(--quiet);stroke-width:1.2;stroke-dasharray:5 4}
.pglab .line{fill:none;stroke-width:2;stroke-linejoin:round}
.pglab .line.rest,.pglab .srest{stroke:var(--quiet);stroke-width:1;opacity:.35}
.pglab .frest{fill:var(--quiet)}
.pglab .band{opacity:.16;stroke:none}
.pglab .open{fill:var(--bg);stroke-width:1.8}
.pglab .thick{stroke-width:3.4;stroke-linecap:round;opacity:.55}
.pglab .seed{opacity:.3}
.pglab .swatch{width:26px;height:10px;vertical-align:middle;margin-right:.5rem;flex:none}
.pglab .bar{width:140px;height:18px;display:block}
.pglab .legend{display:flex;flex-wrap:wrap;gap:.15rem 1.3rem;padding:0;margin:.3rem 0 .6rem;list-style:none;font-size:.88rem}
.pglab .scroll{overflow-x:auto;margin:.7rem 0;border-top:1px solid var(--rule);border-bottom:1px solid var(--rule);overflow-wrap:normal}
.pglab table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:100%}
.pglab th,.pglab td{padding:.36rem .75rem;text-align:left;vertical-align:middle;border-bottom:1px solid var(--rule);max-width:24rem}
.pglab tr:last-child td,.pglab tbody tr:last-child th{border-bottom:0}
.pglab thead th{color:var(--quiet);font-weight:560;font-size:.8rem;vertical-align:bottom;border-bottom:1px solid var(--quiet)}
.pglab tbody th{font-weight:560;min-width:9rem;overflow-wrap:anywhere}
.pglab .named{display:flex;align-items:center;min-width:9.5rem}
.pglab td.num,.pglab th.num{text-align:right}
.pglab td.num{white-space:nowrap}
.pglab td.text{overflow-wrap:anywhere;min-width:4rem}
.pglab td.heat{text-align:center;white-space:nowrap}
.pglab details{margin:.6rem 0;border:1px solid var(--rule);border-radius:6px;padding:.35rem .9rem}
.pglab summary{cursor:pointer;font-weight:560;font-size:.92rem}
.pglab summary .quiet{font-weight:400}
.pglab pre,.pglab code{font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.pglab pre{white-space:pre-wrap;background:var(--soft);padding:.6rem .8rem;border-radius:5px;margin:.5rem 0}
.pglab .warn{background:var(--warnbg);border:1px solid var(--rule);border-left:3px solid var(--warn);border-radius:5px;padding:.5rem 1rem;margin:1rem 0}
.pglab .warn ul{margin:.3rem 0;padding-left:1.1rem;font-size:.9rem}
.pglab .badge{color:var(--warn);font-size:.78rem;font-weight:500;white-space:nowrap}
@media (max-width:640px){.pglab main{padding:1.6rem 1rem 3rem}.pglab h2{margin-top:2rem}.pglab th,.pglab td{padding:.34rem .5rem}}
@media print{.pglab .scroll{overflow:visible}}
"""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def style() -> str:
    """The whole style sheet."""
    series = "".join(f".pglab .s{i}{{stroke:var(--c{i})}}.pglab .f{i}{{fill:var(--c{i})}}" for i in range(7))
    dark = f"@media (prefers-color-scheme:dark){{.pglab{{{_variables(DARK)}}}}}"
    return f".pglab{{{_variables(LIGHT)}}}{dark}{RULES}{series}"


PAGE = "html,body{margin:0;padding:0}"
"""Of a page of its own."""
