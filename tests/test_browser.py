"""The browser fixtures themselves: what they must notice."""


def test_a_page_that_asks_for_nothing_is_clean(page, traffic, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        "<!doctype html><p id=a>hello</p><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", encoding="utf-8"
    )
    page.goto(path.as_uri())
    assert page.inner_text("#a") == "hello"
    assert traffic.requests == traffic.errors == []


def test_requests_and_errors_are_recorded(page, traffic, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        "<!doctype html><script src='https://example.com/x.js'></script><script src='other.js'></script>"
        "<script>fetch('http://localhost:9/'); throw new Error('mine')</script>",
        encoding="utf-8",
    )
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    assert {url.rpartition("/")[2] for url in traffic.requests} == {"x.js", "other.js", ""}
    assert any("mine" in text for text in traffic.errors)
