"""What tests of pages ask of their HTML."""

from html.parser import HTMLParser


class Structure(HTMLParser):
    """What a page consists of: its elements, its texts, and whether every element is closed."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)
