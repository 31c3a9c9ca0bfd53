from jaxrlhf.report.markup import Markup, document, join, tag


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a < b & c", Markup("<b>d</b>")) == "<p>a &lt; b &amp; c<b>d</b></p>"


def test_attribute_cannot_be_left():
    assert tag("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_attributes_have_their_html_names_and_short_numbers():
    assert (
        tag("path", class_="line", stroke_width=1.5, x=2.04, y=None) == '<path class="line" stroke-width="1.5" x="2"/>'
    )


def test_nothing_is_left_out():
    assert join("a", None, "", Markup("<br>")) == "a<br>"


def test_control_characters_are_shown():
    assert tag("p", "a\x00\x1b\n\t") == "<p>a␀␛\n\t</p>"


def test_document_is_html_with_an_escaped_title():
    page = document("a</title>", "p { color: red; }", tag("p", "b"))
    assert page.startswith("<!doctype html>\n<html ")
    assert "<title>a&lt;/title&gt;</title><style>p { color: red; }</style>" in page
    assert page.endswith("<body><p>b</p></body></html>\n")
