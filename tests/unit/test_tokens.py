"""The file of tokens: who is in it, until when, what is read again, and what `janitor tokens` writes into it."""

import resource
import stat
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from tests.processes import environment, janitor, janitor_here, records
from worker.http.tokens import TokenFile, new_token, parse, read_tokens

KEEP = "# keep this\n"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.toml"


@pytest.fixture
def tokens(file):
    """Runs `janitor tokens` on the file."""
    env = environment(JANITOR_TOKENS_FILE=file)
    return lambda *arguments, **more: janitor_here(env | more, "tokens", *arguments)


@pytest.mark.parametrize(
    ("after_now", "has_expired"), [(timedelta(hours=1), False), (timedelta(0), True), (timedelta(days=-1), True)]
)
def test_a_token_has_expired_from_its_time_on(after_now, has_expired):
    (token,) = parse(new_token("billing", expires=datetime.now(UTC) + after_now)[1])
    assert token.has_expired is has_expired


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2027-01-31", "2027-01-31T00:00:00+00:00"),
        ("2027-01-31T18:00:00", "2027-01-31T18:00:00+00:00"),
        ("2027-01-31T18:00:00+02:00", "2027-01-31T18:00:00+02:00"),
    ],
)
def test_an_expiry_is_a_date_or_a_time_in_utc_unless_it_has_an_offset(written, meant):
    (token,) = parse(f"{new_token('billing')[1]}expires = {written}\n")
    assert token.expires.isoformat() == meant


class TestReadingAgain:
    @pytest.fixture
    def known(self, file):
        """The secret of a token in the file, and the file as the service has it, looked at once."""
        secret, table = new_token("billing")
        file.write_text(table)
        clock = Clock()
        known = TokenFile(file, read_tokens(file), clock)
        assert known.find(secret).name == "billing"
        return secret, known, clock

    def test_a_change_counts_within_a_second_and_is_looked_for_once_a_second(self, file, known):
        secret, known, clock = known
        # Given another token in the file, when less than a second has passed, then all is as it was;
        other, table = new_token("other")
        file.write_text(table)
        clock.now += 0.9
        assert (known.find(secret).name, known.find(other)) == ("billing", None)
        # and after a second it is as the file says.
        clock.now += 0.2
        assert (known.find(secret), known.find(other).name) == (None, "other")

    @pytest.mark.parametrize("broken", ["[billing", "[billing]\nsha256 = 7\n", None])
    def test_a_file_that_cannot_be_used_leaves_the_old_tokens_and_is_logged_once(self, file, known, broken):
        secret, known, clock = known
        file.unlink() if broken is None else file.write_text(broken)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                clock.now += 1.1
                assert known.find(secret).name == "billing"
        assert [(one["event"], one["log_level"]) for one in logs] == [("http.tokens_not_read", "error")]
        assert "JANITOR_TOKENS_FILE" in logs[0]["error"]

    def test_the_last_token_can_be_revoked(self, tokens, known):
        secret, known, clock = known
        tokens("revoke", "billing")
        clock.now += 1.1
        assert known.find(secret) is None


MISTAKES = [
    (("new", "two words"), "the name 'two words' is not accepted"),
    (("new", "billing"), "there is a token 'billing' already: revoke it"),
    (("new", "x", "--account", "No Name"), "x.accounts.0: "),
    (("revoke", "nobody"), "no token has the name 'nobody': `janitor tokens list` shows them"),
    (("revoke", "inline"), "the table [inline] in the file cannot be told apart"),
    (("new", "x", "--expires", "2020-01-01T00:00:00Z"), "in the past"),
    (("new", "x", "--scope", "write"), "'write'"),
]


class TestCommands:
    def test_a_new_token_is_printed_once_and_works(self, file, tokens):
        # Given no file, when a token is made, then its secret is the only output, and the file has its digest
        done = tokens("new", "billing")
        secret = done.stdout.removesuffix("\n")
        assert (done.returncode, len(secret) >= 40, secret in done.stderr + file.read_text()) == (0, True, False)
        # in a file of its user alone.
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        token = TokenFile(file, []).find(secret)
        assert (token.name, token.scopes, token.accounts) == ("billing", ("enqueue", "read"), ("default",))

    def test_settings_of_redis_that_are_wrong_hide_no_token_and_stop_no_revoke(self, file, tokens):
        done = tokens("new", "billing", REDIS_URL="bogus")
        assert (done.returncode, TokenFile(file, []).find(done.stdout.strip()).name) == (0, "billing")
        assert "not in the audit log: REDIS_URL is not a URL" in done.stderr
        done = tokens("revoke", "billing", REDIS_URL="bogus")
        assert (done.returncode, "warning: this is not in the audit log" in done.stderr) == (0, True)

    def test_a_new_token_has_the_scopes_accounts_and_expiry_that_are_given(self, file, tokens):
        file.write_text(KEEP + new_token("first")[1].rstrip("\n"))
        done = tokens(
            "new", "reports", "--scope", "read", "--account", "*", "--account", "emea",
            "--expires", "2999-01-31T00:00:00Z",
        )  # fmt: skip
        assert (done.returncode, file.read_text().startswith(KEEP)) == (0, True)
        token = read_tokens(file)[1]
        assert (token.scopes, token.accounts) == (("read",), ("*", "emea"))
        assert token.expires == datetime(2999, 1, 31, tzinfo=UTC)

    def test_the_list_has_no_digest(self, file, tokens):
        _, table = new_token("old", expires=datetime(2020, 1, 1, tzinfo=UTC))
        file.write_text(f"{new_token('billing')[1]}\n{table}")
        for shown in (tokens("list"), tokens("list", "--json")):
            assert not [token for token in read_tokens(file) if token.sha256 in shown.stdout + shown.stderr]
        first, second = records(shown)
        assert (first["name"], first["expires"], first["has_expired"]) == ("billing", None, False)
        assert (second["expires"], second["has_expired"]) == ("2020-01-01T00:00:00.000Z", True)
        assert "(expired)" in tokens("list").stdout

    @pytest.mark.parametrize("name", ["first", "middle", "last"])
    def test_a_revoked_one_is_gone_and_all_else_stays(self, file, tokens, name):
        names = ("first", "middle", "last")
        table = {one: new_token(one)[1].replace("accounts", "\n# its accounts\naccounts") for one in names}
        file.write_text("\n".join(f"# who uses {one}\n{table[one]}" for one in names))
        file.chmod(0o640)
        before, inode = file.read_text(), file.stat().st_ino
        done = tokens("revoke", name)
        # Also while there is no Redis, which is where the audit log is.
        said, warned = done.stderr.splitlines()
        assert (done.returncode, said) == (0, f"revoked: {name}")
        assert warned.startswith("warning: this is not in the audit log: no Redis")
        after = file.read_text()
        assert [token.name for token in read_tokens(file)] == [one for one in names if one != name]
        assert all(f"# who uses {one}\n" in after for one in names)
        assert set(before.splitlines()) > set(after.splitlines())
        assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_ino) == (0o640, inode)

    @pytest.mark.parametrize(("arguments", "words"), MISTAKES)
    def test_a_mistake_is_told_and_the_file_stays(self, file, tokens, arguments, words):
        digest = "a" * 64
        inline = f'inline = {{sha256 = "{digest}", scopes = ["read"], accounts = ["*"]}}\n'
        file.write_text(inline + new_token("billing")[1])
        before = file.read_bytes()
        done = tokens(*arguments)
        assert (done.returncode, words in done.stderr, done.stdout) == (2, True, ""), done.stderr
        assert file.read_bytes() == before

    def test_without_a_file_it_says_what_one_must_hold(self, file):
        done = janitor_here(environment(), "tokens", "new", "billing")
        file.write_text(done.stderr[done.stderr.index("[billing]") : done.stderr.index("the token, shown")])
        assert TokenFile(file, []).find(done.stdout.strip()).name == "billing"
        for command in (["list"], ["revoke", "billing"]):
            done = janitor_here(environment(), "tokens", *command)
            assert (done.returncode, "JANITOR_TOKENS_FILE is not set" in done.stderr) == (2, True)


def test_a_full_disk_leaves_the_file_as_it_is(tmp_path):
    # Given a file of tokens on a disk that has no room for another one,
    file = tmp_path / "tokens.toml"
    file.write_text(new_token("billing")[1], encoding="utf-8")
    before, room = file.read_text(), file.stat().st_size + 50

    # when one is made, then one line names the file, and it is as before.
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    env = environment(JANITOR_TOKENS_FILE=file)
    env.pop("COVERAGE_PROCESS_CONFIG", None)  # `make coverage` could not write its own file either
    done = janitor(env, "tokens", "new", "shipping", preexec_fn=limited)
    assert (done.returncode, done.stderr) == (1, f"Error: {file}: File too large\n")
    assert file.read_text() == before
