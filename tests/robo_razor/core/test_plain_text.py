"""Names of skills, arms and runs are text, in a page, in Markdown, CSV, figures and tables."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
from made_up_runs import entry, make_run
from markdown_it import MarkdownIt
from rich.console import Console

from robo_razor.cli.evaluate import results_table
from robo_razor.core.files import read_json, write_json
from robo_razor.core.metrics import Summary
from robo_razor.core.plain_text import literal, printable, printable_values, shortened, skill_name
from robo_razor.core.run.display import Display, summary_table
from robo_razor.core.settings.config import CompareConfig
from robo_razor.core.types import SkillResult
from robo_razor.report.arms import load_runs
from robo_razor.report.build import run_compare
from robo_razor.report.charts import figures, matplotlib
from robo_razor.report.charts.skills import skill_chart
from robo_razor.report.csv_tables import to_csv
from robo_razor.report.markdown import literal as markdown_literal

LINK = "[x](javascript:alert(1))"
SKILLS = {"<!--<script>": 1.0, LINK: 0.9, "a|b</td>": 0.8, "$\\frac$": 0.7, "_hidden": 0.6}
ARMS = ("=cmd|'/C calc'!A0", '"><img src=x onerror=alert(1)>')
DISTANCES = {"=1+1": 0.5, "<b>": 0.25}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Return the directory of a report on runs whose names are as bad as names can be."""
    root = tmp_path_factory.mktemp("names")
    runs = []
    for i, arm in enumerate(ARMS):
        path = root / "sweep" / str(i) / "r"
        points = [(0.2, 1.0, 0.0), (0.6 + 0.2 * i, 0.9 - 0.2 * i, 1.0)]
        make_run(path, points, skills=SKILLS, seed=i)
        for file in path.glob("eval/*/summary.json"):
            write_json(file, {**read_json(file), "distances": DISTANCES})
        run = {"arm": arm, "name": "-1+1", "path": f"{i}/r", "state": "finished"}
        runs.append(run)
    record = {"kind": "robo-razor sweep", "version": 1, "name": "s", "arms": list(ARMS)}
    write_json(root / "sweep/sweep.json", {**record, "runs": runs})
    run_compare(CompareConfig(runs=(str(root / "sweep"),), out=str(root / "report"), videos=0))
    return root / "report"


class Page(HTMLParser):
    """Collects a page's elements, its text, and what stands in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words = [], [], [], []
        self.in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.in_script = False

    def handle_data(self, data):
        if self.in_script:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]}")


@pytest.mark.slow
def test_the_page_has_its_three_scripts_and_the_names_as_text(out):
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert len(page.scripts) == 3
    charts = json.loads(page.scripts[0])["charts"]
    assert {"matched", "frontier", "skills"} <= {chart["id"] for chart in charts}
    assert "img" not in page.tags
    assert "onerror" not in page.attributes
    page_text = "".join(page.words)
    assert all(name in page_text for name in (*SKILLS, *ARMS))


def test_plotly_gets_no_tags_from_names(out):
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    text = page.scripts[0]
    assert "<" not in text
    values = json.dumps(json.loads(text))
    assert "<img" not in values
    assert "<!--" not in values
    assert "&lt;img" in values


def test_the_markdown_shows_names_and_no_more(out):
    text = (out / "report.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").parse(text)
    inline = [child for token in tokens for child in (token.children or [])]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"link_open", "html_inline", "html_block", "code_inline", "fence"}
    images = [token for token in inline if token.type == "image"]
    assert {token.attrs["src"] for token in images} <= {file.name for file in out.glob("*.png")}
    plain = "".join(token.content for token in inline if token.type == "text")
    assert all(name in plain for name in (*SKILLS, *ARMS))
    heads = [token for token in tokens if token.type == "heading_open"]
    assert len(heads) == sum(line.startswith("#") for line in text.split("\n"))


def test_no_cell_of_a_csv_file_is_a_formula(out):
    for name in ("checkpoints.csv", "matched.csv", "predictors.csv"):
        rows = list(csv.reader(io.StringIO((out / name).read_text(encoding="utf-8"))))
        for cell in (cell for row in rows for cell in row):
            if cell[:1] in "=+-@\t\r" and cell:
                float(cell)  # numbers stay numbers
    head = (out / "checkpoints.csv").read_text(encoding="utf-8").split("\n")[0]
    assert "'=1+1" in head
    assert to_csv([{"a": -1.5, "b": "-1.5", "c": "@x", "d": None, "e": "x=1"}]) == (
        "a,b,c,d,e\n-1.5,'-1.5,'@x,,x=1\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        *(LINK, "![x](http://a.b)", "[x][y]", "[x]: http://a.b", "<http://a.b>", "`code`"),
        *("<b>", "&lt;b&gt;", "*bold*", "__bold__", "_x_", "~~gone~~", "a|b", "\\|", "\\", "$x$"),
        *("[x](<javascript:alert(1)>)", "[[x](y)](z)", "x\\](y)", "![](x)"),
    ],
)
def test_markdown_of_any_name_is_that_name(name):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    (inline,) = (t for t in parser.parse(f"word {markdown_literal(name)} word") if t.children)
    assert {token.type for token in inline.children} == {"text"}
    assert "".join(token.content for token in inline.children) == f"word {name} word"


def test_addresses_do_not_become_links_on_github():
    assert markdown_literal("https://a.b www.a.b") == "https:\\//a.b www\\.a.b"
    assert markdown_literal("kl_coef = [0.1, 0.2] (episodes)") == "kl_coef = [0.1, 0.2] (episodes)"


def test_names_in_one_line_without_what_is_not_seen():
    assert printable("a b-ö日") == "a b-ö日"
    assert printable("a\x1b[31m\nb\u202e\ud800\u2028") == r"a\x1b[31m\nb\u202e\ud800\u2028"
    assert printable_values({"a\n": ["\x07", 1, None]}) == {"a\\n": ["\\x07", 1, None]}
    assert shortened("x" * 50, 10) == "x" * 9 + "\u2026"
    assert str(literal("[red]x[/]\x1b")) == "[red]x[/]\\x1b"


def shown(renderable):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor")
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["[/]", "[red]x[/red]", "[link=http://a.b]x[/link]", "\x1b[2Jx"])
def test_tables_of_the_terminal_show_names_as_they_are(name):
    result = SkillResult("a/B-v0", "prior", (True, False), (0.1, 0.9), 3.0)
    summary = {"step": 1, "new": {name: entry(0.5, 2)}, "prior": {name: entry(0.5, 2)}}
    summary["kl_base_tuned"] = {name: 0.5}
    for text in (
        shown(results_table({name: result}, name)),
        shown(summary_table(Summary.made(summary))),
    ):
        assert printable(name) in text
        assert "\x1b[2J" not in text
        assert "\x1b]8" not in text
    console = Console(file=io.StringIO(), width=200)
    screen = Display(console)
    screen.warn(f"{name} is being forgotten")
    screen.note(name)
    assert console.file.getvalue().count(printable(name)) == 2


def test_figures_show_names_as_they_are():
    figure, axes = plt.subplots()
    names = ["$\\frac$", "_hidden", "a$b$c", "x" * 300, "日本"]
    for name in names:
        axes.plot([0, 1], [0, 1], label=matplotlib.literal(name))
    texts = [text.get_text() for text in axes.legend().get_texts()]
    plt.close(figure)
    assert len(texts) == len(names)  # matplotlib leaves out labels that begin with _
    assert texts[0] == "\\$\\frac\\$"
    assert len(texts[3]) == matplotlib.MAX_NAME


def test_a_figure_of_many_skills_shows_those_of_which_least_is_kept():
    skills = [
        {"skill": f"s{k}", "retention": 0.9 - 0.001 * k, "interval": None, "values": [0.5]}
        | {"success_rate": 0.5, "n": 10}
        for k in range(1000)
    ]
    report = {"skills": [{"arm": "a", "skills": skills}]}
    figure = plt.figure()
    matplotlib.draw(figure, skill_chart(report, figures.MAX_SKILLS).shown.panels, "skills")
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    plt.close(figure)
    assert names == [f"s{k}" for k in range(999, 939, -1)]  # the first one is at the top
    assert axes.get_ylabel() == "940 skills with higher retention are left out"


def test_a_directory_whose_name_is_no_text_is_reported(tmp_path):
    path = tmp_path / "a\udcff\x1b[31m\nb"
    make_run(tmp_path / "run", [(0.2, 1.0, 0.0), (0.6, 0.9, 1.0)])
    (tmp_path / "run").rename(path)
    (run,) = load_runs([str(path)]).runs
    assert run.name == r"a\udcff\x1b[31m\nb"


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("gym_razor/LiftCube-v0", "LiftCube"),
        ("lerobot:metaworld/reach-v3", "reach"),
        ("lerobot:libero/libero_10:3", "libero_10:3"),
        ("my/Pick-vase", "Pick-vase"),
        ("Pendulum-v1", "Pendulum"),
        ("-v1", "-v1"),
        ("run", "run"),
    ],
)
def test_a_skill_is_named_for_its_task_without_a_version(task, name):
    assert skill_name(task) == name
