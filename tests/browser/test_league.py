"""The page of a league, in a browser without a network."""

import subprocess
import sys

import pytest
from browser.conftest import EXAMPLES, ROOT

from reports.league import read

pytestmark = pytest.mark.browser
LEAGUE = EXAMPLES / "overload" / "league.json"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("league") / "league.html"
    subprocess.run([sys.executable, "-m", "reports", "overload", str(LEAGUE), "-o", str(out)], check=True, cwd=ROOT)
    return out.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("width", [390, 1400])
def test_a_league_is_read_on_any_screen(reader, scheme, page, width):
    reader.page.set_viewport_size({"width": width, "height": 900})
    reader.open(page)
    rows = read(LEAGUE)["rows"]
    figures = {
        name: len({row["load"] for row in rows if row["workload"] == name}) for name in dict.fromkeys(row["workload"] for row in rows)
    }
    titles = reader.click_through(f"league-{width}-{scheme}", {**figures, "Policies": 0, "Signals": 0})
    assert titles == [*figures, "Policies", "Signals"]
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    assert (reader.errors, reader.refused) == ([], [])
