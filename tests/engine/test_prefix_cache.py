"""The tree of pages against a slow oracle: a dict from page to all tokens up to its end."""

from __future__ import annotations

import itertools
import random

import pytest

from gumba.engine.prefix_cache import MAX_COMPARED, MIN_COPIED, PrefixCache
from support.fake_model import FakeKV

SIZE = 8


def common(one, other):
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))))


class Oracle:
    """The content of the tree: ``paths[page]`` are the tokens from the beginning to the last one that the page is cached for;
    ``used`` begins with the least recently used page."""

    def __init__(self, kv):
        self.kv, self.paths, self.used = kv, {}, []

    def page_of(self, path):
        return next((page for page, other in self.paths.items() if other == path), None)

    def touch(self, path, part=None):
        """Use all full pages of ``path`` and the page ``part``; the end counts as older than the beginning."""
        full = [page for page, one in self.paths.items() if not len(one) % SIZE and path[: len(one)] == one]
        full.sort(key=lambda page: -len(self.paths[page]))
        for page in full if part in (None, *full) else [part, *full]:
            if page in self.used:
                self.used.remove(page)
            self.used.append(page)

    def find(self, tokens, most):
        """The matching pages; then page -> number of its tokens that match the following ones."""
        pages = []
        while (len(pages) + 1) * SIZE <= most and (page := self.page_of(tokens[: (len(pages) + 1) * SIZE])) is not None:
            pages.append(page)
        known = len(pages) * SIZE
        self.touch(tokens[:known])
        following = {
            page: common(path[known:], tokens[known:most])
            for page, path in self.paths.items()
            if path[:known] == tokens[:known] and known < len(path) <= known + SIZE
        }
        return pages, following

    def add(self, path, page):
        if len(path) % SIZE:
            for other, known in list(self.paths.items()):
                if other == page:
                    self.paths[page] = max(known, path, key=len)
                    return self.touch(path, other)
                if len(known) // SIZE == len(path) // SIZE and len(known) % SIZE and known[: len(path)] == path:
                    return self.touch(known, other)
        elif self.page_of(path) is not None:
            return self.touch(path)
        self.paths.pop(page, None)
        self.paths[page] = path
        self.touch(path, page)

    def idle(self):
        return [page for page in self.used if self.kv.owners(page) == 1]

    def victim(self):
        """The least recently used page without an owner and without a page that follows it."""
        for page in self.idle():
            path = self.paths[page]
            if len(path) % SIZE or not any(o[: len(path)] == path for o in self.paths.values() if len(o) > len(path)):
                return page
        return None


def walk(cache):
    """Page -> path of all nodes in the tree; checks that every link exists in both directions."""
    actual = {}
    todo = [(cache.root, ())]
    while todo:
        node, path = todo.pop()
        for tokens, child in node.full.items():
            assert child.tokens == tokens and len(tokens) == SIZE and child.parent is node
            todo.append((child, path + tokens))
        for part in node.partial:
            assert 0 < len(part.tokens) < SIZE and part.parent is node and not part.full and not part.partial
            todo.append((part, path + part.tokens))
        if node is not cache.root:
            assert node.page not in actual, "a page is in the tree twice"
            actual[node.page] = path
    return actual


class World:
    """A cache with its oracle, and clients that own pages: they start from a match and continue in pages of their own."""

    def __init__(self, n_pages):
        self.kv = FakeKV(n_pages, SIZE)
        self.cache, self.oracle = PrefixCache(self.kv), Oracle(self.kv)
        self.clients = []
        self.seen = {"pages": 0, "copies": 0, "same": 0, "victims": 0, "full parts": 0}

    def evict(self, n_free):
        expected = []  # pages that the oracle evicts, with its own count of free pages
        before = dict(self.oracle.paths)
        while self.kv.n_free + len(expected) < n_free and (page := self.oracle.victim()) is not None:
            del self.oracle.paths[page]
            self.oracle.used.remove(page)
            expected.append(page)
        possible = self.kv.n_free + len(expected) >= n_free
        assert self.cache.evict(n_free) is possible
        assert {page: self.kv.owners(page) for page in expected} == dict.fromkeys(expected, 0)
        assert before.keys() - walk(self.cache).keys() == set(expected)
        self.seen["victims"] += len(expected)
        return possible

    def join(self, tokens):
        """A new client: what the engine does when it admits a request."""
        most = len(tokens) - 1
        pages, following = self.oracle.find(tokens, most)
        match = self.cache.find(tokens, most)
        assert match.pages == pages
        assert match.n_copied == max((n for n in following.values() if n >= MIN_COPIED), default=0)
        assert len(pages) * SIZE + match.n_copied <= most
        if match.n_copied:
            assert following[match.source] == match.n_copied
            self.oracle.touch(self.oracle.paths[match.source], match.source)
        held = pages + ([match.source] if match.n_copied else [])
        self.kv.share(held)
        self.check()
        needed = -(-len(tokens) // SIZE) - len(pages)
        if self.evict(needed):
            client = {
                "tokens": tokens,
                "pages": pages + self.kv.allocate(needed),
                "node": match.node,
                "kept": len(pages),
            }
            if match.n_copied:
                self.kv.copy(match.source, client["pages"][len(pages)])
                self.kv.release([match.source])
            written = len(pages) * SIZE + match.n_copied
            assert self.content(client)[:written] == list(tokens[:written])
            self.write(client, written)
            self.clients.append(client)
            self.seen["pages"] += len(pages)
            self.seen["copies"] += match.n_copied > 0
        else:
            self.kv.release(held)

    def content(self, client):
        return self.kv.store[client["pages"]].ravel().tolist()

    def write(self, client, start):
        for at in range(start, len(client["tokens"])):
            self.kv.store[client["pages"][at // SIZE], at % SIZE] = client["tokens"][at]

    def keep(self, client, *, part):
        tokens, pages = client["tokens"], client["pages"]
        while (client["kept"] + 1) * SIZE <= len(tokens):
            at = client["kept"]
            path, page = tokens[: (at + 1) * SIZE], pages[at]
            self.seen["full parts"] += len(self.oracle.paths.get(page, path)) < len(path)
            self.oracle.add(path, page)
            node = self.cache.add(client["node"], path[-SIZE:], page)
            assert node.page == self.oracle.page_of(path)
            if node.page != page:  # another client computed the same
                self.kv.share([node.page])
                self.kv.release([page])
                pages[at] = node.page
                self.seen["same"] += 1
            client["node"], client["kept"] = node, at + 1
            self.check()
        rest = tokens[client["kept"] * SIZE :]
        if part and rest:
            self.oracle.add(tokens, pages[client["kept"]])
            self.cache.add(client["node"], rest, pages[client["kept"]])

    def grow(self, client, more):
        start, client["tokens"] = len(client["tokens"]), client["tokens"] + more
        missing = -(-len(client["tokens"]) // SIZE) - len(client["pages"])
        if self.evict(missing):
            client["pages"] = client["pages"] + self.kv.allocate(missing)
            self.write(client, start)
        else:
            client["tokens"] = client["tokens"][:start]

    def leave(self, client):
        self.clients.remove(client)
        self.kv.release(client["pages"])

    def check(self):
        paths = walk(self.cache)
        assert paths == self.oracle.paths and self.cache.n_pages == len(paths)
        assert [node.page for node in self.cache._nodes] == self.oracle.used
        assert self.cache.evictable() == len(self.oracle.idle())
        for page, path in paths.items():
            first = (len(path) - 1) // SIZE * SIZE
            assert self.kv.store[page, : len(path) - first].tolist() == list(path[first:])
        for client in self.clients:
            assert self.content(client)[: len(client["tokens"])] == list(client["tokens"])
        held = [page for client in self.clients for page in client["pages"]] + list(paths)
        assert len(set(held)) + self.kv.n_free == self.kv.n_pages, "a page is leaked"


@pytest.mark.parametrize("n_pages", [6, 12, 20, 31])
def test_random_requests_against_the_oracle(n_pages):
    """Few different tokens, so that requests often share prefixes; few pages, so that many are evicted."""
    rng = random.Random(n_pages)
    world = World(n_pages)

    def some(n):
        return tuple(rng.choices((1, 2), (9, 1), k=n))

    for _ in range(2400):
        kind = rng.randrange(8)
        client = rng.choice(world.clients) if world.clients else None
        if kind < 3:
            start = rng.choice(list(world.oracle.paths.values()) or [()])
            start = start[: rng.randrange(len(start) + 1)]
            world.join(start + some(rng.randrange(1, 12)))
        elif client and kind == 3:
            world.grow(client, some(rng.randrange(1, 10)))
        elif client and kind < 6:
            world.keep(client, part=rng.random() < 0.6)
        elif client and kind == 6:
            world.leave(client)
        elif kind == 7 and rng.random() < 0.3:
            world.evict(rng.randrange(n_pages + 2))
        world.check()
    assert all(n > 10 for n in world.seen.values()), world.seen
    while world.clients:
        world.leave(world.clients[0])
    assert world.evict(n_pages)
    world.check()
    assert world.kv.n_free == n_pages and world.cache.n_pages == 0


def fill(kv, cache, path, *, hold=False):
    """Computes ``path`` for the cache; returns its pages."""
    pages, node = [], cache.root
    for at in range(0, len(path), SIZE):
        (page,) = kv.allocate(1)
        node = cache.add(node, tuple(path[at : at + SIZE]), page)
        if not hold:
            kv.release([page])
        pages.append(page)
    return pages


@pytest.fixture
def kv():
    return FakeKV(40, SIZE)


@pytest.fixture
def cache(kv):
    return PrefixCache(kv)


def kept(cache):
    return set(walk(cache))


def test_the_least_recently_used_is_evicted_first_and_ends_before_beginnings(kv, cache):
    one, two, three = (fill(kv, cache, [number] * 3 * SIZE) for number in (1, 2, 3))
    cache.find([1] * 3 * SIZE, 3 * SIZE)  # now the second path is the oldest
    gone = []
    for n_free in range(kv.n_free + 1, kv.n_pages + 1):
        before = kept(cache)
        assert cache.evict(n_free)
        gone += before - kept(cache)
    assert gone == two[::-1] + three[::-1] + one[::-1]


def test_owned_pages_and_all_before_them_are_not_evicted(kv, cache):
    held, other = fill(kv, cache, [1] * 3 * SIZE), fill(kv, cache, [2] * 3 * SIZE)
    kv.share(held)
    assert not cache.evict(kv.n_pages)
    assert kept(cache) == set(held) and not any(kv.owners(page) for page in other)
    assert cache.find([1] * 3 * SIZE, 3 * SIZE).pages == held
    kv.release(held)
    assert cache.evict(kv.n_pages) and kept(cache) == set()


def test_nothing_is_evicted_while_enough_is_free(kv, cache):
    fill(kv, cache, [1] * 3 * SIZE)
    assert cache.evict(kv.n_free) and cache.n_pages == 3
    assert not cache.evict(kv.n_pages + 1)


def test_adding_a_page_counts_as_use(kv, cache):
    """A partial page that is added once more counts as used then."""
    (first,), (second,) = fill(kv, cache, [1] * 5, hold=True), fill(kv, cache, [2] * 5, hold=True)
    cache.add(cache.root, (1,) * 6, first)
    kv.release([first, second])
    assert cache.evict(kv.n_free + 1) and kept(cache) == {first}


@pytest.mark.parametrize("most", range(2 * SIZE + 1))
def test_the_limit_is_respected(kv, cache, most):
    pages = fill(kv, cache, range(2 * SIZE))
    match = cache.find(list(range(2 * SIZE)), most)
    assert match.pages == pages[: most // SIZE]
    rest = most % SIZE
    assert (match.n_copied, match.source) == ((rest, pages[most // SIZE]) if rest >= MIN_COPIED else (0, -1))


def test_the_longest_match_is_copied_from_full_and_partial_pages(kv, cache):
    fill(kv, cache, [*range(SIZE), *[1, 1, 1, 1, 9, 9, 9, 9]])
    (_, best) = fill(kv, cache, [*range(SIZE), *[1, 1, 1, 1, 1, 8, 8, 8]])
    match = cache.find([*range(SIZE), *[1] * 7], 2 * SIZE - 1)
    assert (match.source, match.n_copied) == (best, 5)
    (page,) = kv.allocate(1)
    node = cache.find(list(range(SIZE)), SIZE).node
    cache.add(node, (1, 1, 1, 1, 1, 1), page)
    match = cache.find([*range(SIZE), *[1] * 7], 2 * SIZE - 1)
    assert (match.source, match.n_copied) == (page, 6)
    assert cache.find([5, *[1] * 7], SIZE).n_copied == 0


def test_a_partial_page_becomes_full(kv, cache):
    (page,) = fill(kv, cache, [1] * 5, hold=True)
    assert kv.owners(page) == 2
    cache.add(cache.root, (1,) * 6, page)
    assert walk(cache) == {page: (1,) * 6}
    assert cache.add(cache.root, (1,) * SIZE, page).page == page
    assert walk(cache) == {page: (1,) * SIZE} and kv.owners(page) == 2
    kv.release([page])
    assert cache.evict(kv.n_pages)


def test_a_known_partial_page_is_not_added_twice(kv, cache):
    (page,) = fill(kv, cache, [1] * 5)
    (other,) = kv.allocate(1)
    assert cache.add(cache.root, (1,) * 4, other).page == page and kv.owners(other) == 1
    assert walk(cache) == {page: (1,) * 5}
    assert cache.add(cache.root, (1,) * 6, other).page == other and kv.owners(other) == 2


def test_a_known_full_page_is_not_added_twice(kv, cache):
    (page,) = fill(kv, cache, [1] * SIZE)
    (other,) = kv.allocate(1)
    assert cache.add(cache.root, (1,) * SIZE, other).page == page
    assert walk(cache) == {page: (1,) * SIZE} and kv.owners(other) == 1


def test_the_number_of_partial_pages_is_limited(kv, cache):
    """A request is compared with all of them."""
    pages = [fill(kv, cache, [number, 0, 0, 0, 0])[0] for number in range(MAX_COMPARED + 3)]
    assert kept(cache) == set(pages[3:])
    assert cache.find([0, 0, 0, 0, 0, 0], 5).n_copied == 0
    assert cache.find([3, 0, 0, 0, 0, 0], 5).n_copied == 5


def test_clear(kv, cache):
    held = fill(kv, cache, [1] * 2 * SIZE, hold=True)
    fill(kv, cache, [1] * SIZE + [2] * 5)
    node = cache.find([1] * SIZE, SIZE).node
    cache.clear()
    assert cache.n_pages == cache.evictable() == 0 and kv.n_free == kv.n_pages - 2
    assert cache.find([1] * SIZE, SIZE).pages == []
    # A sequence that continues where it was.
    (more,) = kv.allocate(1)
    node = cache.add(node, (3,) * SIZE, held[1])
    assert node.page == held[1] and cache.add(node, (4,) * 5, more).page == more
    assert cache.n_pages == 0 and kv.owners(held[1]) == kv.owners(more) == 1
    # And a new one.
    fill(kv, cache, [1] * SIZE)
    assert cache.n_pages == 1
    kv.release([*held, more])
    assert cache.evict(kv.n_pages) and kv.n_free == kv.n_pages
