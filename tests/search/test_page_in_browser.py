"""The search page in a real browser, used like a person: by mouse, by dropping files, and once by keyboard only."""

import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from search.encode import encode_files
from tests.image_trees import photo
from tests.search.digits_page import code_of, digits_store, file_of, neighbours, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# No sandbox, since tests may run as root in a container; small /dev/shm there; no calls home.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update")
WATCH_LAYOUT = """
    window.moved = [];
    window.shift = 0;
    new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
        shift += entry.value;
        moved.push(...entry.sources.map((source) => source.node?.id || source.node?.className));
    })).observe({type: 'layout-shift', buffered: true});
"""
DROP = """([selector, names]) => {
    const transfer = new DataTransfer();
    for (const [name, bytes] of names) transfer.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
    const event = (kind) => new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
    document.querySelector(selector).dispatchEvent(event('dragover'));
    const told = [...document.querySelectorAll('#drop p')].filter((p) => p.checkVisibility()).map((p) => p.textContent);
    document.querySelector(selector).dispatchEvent(event('drop'));
    return told;
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def page(browser):
    """A page of the browser; in the end, it must not have reported anything but `page.expected`."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.add_init_script(WATCH_LAYOUT)
    page = context.new_page()
    problems, page.expected = [], "nothing"
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert [problem for problem in problems if page.expected not in problem] == []


def shown(page, count=10):
    """(distance, row) of each neighbour, as soon as there are `count`."""
    page.wait_for_selector("main:not(.starting) #results:not([aria-busy])")
    expect(page.locator("#neighbours .tile")).to_have_count(count)
    tiles = page.locator("#neighbours .tile").evaluate_all(
        "tiles => tiles.map((tile) => [tile.querySelector('.distance').innerText, Number(tile.dataset.row)])"
    )
    found = [(re.fullmatch(r"(\d+) of 32 bits differ|same code|your image", text), row) for text, row in tiles]
    return [(int(distance[1] or 0), row) for distance, row in found]


def open_page(page, address, images=60):
    """Open it, and wait for the images and the labels."""
    page.goto(address)
    page.wait_for_selector("main:not(.starting)")
    assert page.locator("#items .tile").count() == images


def search_of(page):
    return page.evaluate("location.search")


def test_with_a_mouse(page, server, digits):
    open_page(page, server.address)
    expect(page.locator("#about")).to_have_text("130 images in 32 bits")
    expect(page.locator("#items .tile").first).to_contain_text("0000.png")  # the name is under the picture

    page.click("#items .tile[data-row='7']")
    wanted = neighbours(digits, code_of(digits, 7), 10, without=7)
    assert shown(page) == wanted and search_of(page) == "?row=7"
    labels = [digits.collection().item(row)[2] for _, row in wanted]
    same = labels.count(digits.collection().item(7)[2])
    told = f"The 10 nearest images of 130. {same} of 10 have the label of the query."
    expect(page.locator("#status")).to_have_text(told)
    expect(page.locator("#neighbours .tile .name").first).to_have_text(f"{wanted[0][1]:04}.png")
    expect(page.locator("#items .tile[aria-current]")).to_have_attribute("data-row", "7")
    expect(page.locator("#results-title")).to_be_focused()

    # A neighbour of a neighbour, another number of neighbours, and back.
    page.click("#neighbours .tile >> nth=0")
    page.wait_for_url(f"**/?row={wanted[0][1]}")
    shown(page)
    page.select_option("#k", "20")
    shown(page, 20)
    page.go_back()
    page.go_back()
    page.wait_for_url("**/?row=7")
    expect(page.locator("#query-caption")).to_contain_text("Image 7")
    assert shown(page) == wanted

    # Only one label, in the results and in the collection; the next page of images; a saved address.
    page.select_option("#label", "3")
    count = [digits.collection().item(row)[2] for row in range(130)].count("3")
    assert shown(page) == neighbours(digits, code_of(digits, 7), 10, without=7, label="3")
    expect(page.locator("#status")).to_have_text("The 10 nearest images with the label 3.")
    expect(page.locator("#items .tile")).to_have_count(count)
    assert search_of(page) == "?row=7&label=3"
    page.select_option("#label", "")
    page.click("#next")
    expect(page.locator("#range")).to_have_text("61 to 120 of 130")
    page.goto(f"{server.address}?row=12&k=20&start=60")
    assert shown(page, 20) == neighbours(digits, code_of(digits, 12), 20, without=12)
    expect(page.locator("#items .tile").first).to_have_attribute("data-row", "60")


def test_with_own_files(page, server, digits, tmp_path):
    own = tmp_path / "own photo with a name that is much too long for the space under a picture.png"
    photo(3, 90, 70).save(own)
    [(_, [code], _)] = encode_files(digits.model(), [str(own)])
    open_page(page, server.address)
    page.set_input_files("#file", own)
    assert shown(page) == neighbours(digits, code, 10)
    expect(page.locator("#query-image")).to_have_attribute("alt", f"Your image {own.name}")
    assert page.evaluate("document.querySelector('#query-image').naturalWidth") == 90
    expect(page.locator("#adding")).to_be_hidden()

    # A file of the collection is marked.
    told = page.evaluate(DROP, ["#collection", [["a.png", list(file_of(digits, 3))]]])
    assert told == ["Drop the image to search with it"]
    expect(page.locator("#query-caption")).to_have_text("a.png: image 3 of the collection, 0003.png, label:\xa03")
    assert shown(page) == neighbours(digits, code_of(digits, 3), 10)
    expect(page.locator("#neighbours .tile[data-row='3'] .distance")).to_have_text("your image")
    expect(page.locator("#items .tile[aria-current]")).to_have_attribute("data-row", "3")
    page.go_back()
    expect(page.locator("#query-caption")).to_have_text(own.name)
    assert shown(page) == neighbours(digits, code, 10)

    # A damaged file: an error message, and the page still works.
    page.expected = "422 (UNPROCESSABLE"
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(own.read_bytes()[:1000])
    page.set_input_files("#file", damaged)
    expect(page.locator("#problem")).to_contain_text("cannot be read")
    expect(page.locator("#neighbours .tile")).to_have_count(0)
    page.click("#items .tile[data-row='2']")
    shown(page)
    expect(page.locator("#problem")).to_be_hidden()


def test_with_a_keyboard_only(page, server, digits):
    open_page(page, server.address)
    visited = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.innerText")
        visited.append(focused)
        assert page.evaluate(
            "(e => { const s = getComputedStyle(e.id === 'file' ? e.nextElementSibling : e);"
            " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0; })(document.activeElement)"
        ), visited
        if page.evaluate("document.activeElement.matches('#items .tile')"):
            break
        if focused == "label":
            page.keyboard.press("3")  # chooses the label
            expect(page.locator("#items .tile").first).to_have_attribute("data-row", "3")
    assert {"Skip to the results", "file", "row", "k", "label"} <= set(visited), visited
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?row=13&label=3")
    assert shown(page) == neighbours(digits, code_of(digits, 13), 10, without=13, label="3")
    page.focus("#row")
    page.keyboard.type("25")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?row=25&label=3")
    shown(page)


def test_on_any_screen(page, server):
    def answer_late(route):  # so that the places of the neighbours are seen before them
        page.wait_for_timeout(200)
        route.continue_()

    page.route("**/search?*", answer_late)
    for width, scheme in ((320, "light"), (390, "dark"), (1200, "dark")):
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        page.goto("about:blank")
        open_page(page, f"{server.address}?row=12")
        shown(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 100")
        assert dark is (scheme == "dark")
        # What Web Vitals call a good layout shift.
        assert page.evaluate("shift") < 0.1, (width, page.evaluate("moved"))
    assert page.evaluate("[...document.images].filter((i) => !i.hidden && !i.alt).length") == 0
    unnamed = "[...document.querySelectorAll('input,select')].filter((e) => !e.labels.length).length"
    assert page.evaluate(unnamed) == 0


def test_images_are_added(page, tmp_path):
    store = digits_store(tmp_path, 12)
    image = tmp_path / "new.png"
    image.write_bytes(file_of(store, 3))
    page.expected = "422 (UNPROCESSABLE"
    with serving(store, writable=True) as server:
        open_page(page, f"{server.address}?row=3", 12)
        page.set_input_files("#add", image)
        expect(page.locator("#added")).to_have_text("new.png is image 12.")
        expect(page.locator("#items .tile")).to_have_count(13)
        expect(page.locator("#label option").last).to_have_text("added")
        page.select_option("#label", "added")
        assert shown(page, 1) == [(0, 12)]
        expect(page.locator("#neighbours .distance")).to_have_text("same code")
        page.select_option("#label", "")

        photo(6, 40, 40).save(image)
        files = [["second.png", list(image.read_bytes())], ["broken.png", [1, 2, 3]]]
        told = page.evaluate(DROP, ["#collection", files])
        assert told == ["Drop the images to add them to the collection"]
        expect(page.locator("#added")).to_contain_text("second.png is image 13. broken.png was not added: This file is")
        expect(page.locator("#items .tile")).to_have_count(14)
        assert len(list((store.images / "added").iterdir())) == 2

        told = page.evaluate(DROP, ["#results", files[:1]])  # elsewhere on the page, a file is a query
        assert told == ["Drop the image to search with it"]
        expect(page.locator("#neighbours .tile[data-row='13'] .distance")).to_have_text("your image")
