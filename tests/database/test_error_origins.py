"""The origin of an error: the server about this connection, the server about something else, or a pooler.

Only FATAL, PANIC or a closed connection is a loss. An error that a healthy server reports as ERROR leaves connection
and circuit alone, whatever its code.
"""

# ruff: noqa: PT012 - these tests are about what is raised inside a scope and what leaves it

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from koo.ai.foreign.databases import classify_database
from koo.database.database import Database
from koo.database.faults import ScopeStage, explain
from koo.errors import CommitOutcomeUnknown, DatabaseTimeout, DatabaseUnavailable, Kind
from koo.policies.breaker import CLOSED
from koo.policies.verdict import FAILURE, NEUTRAL
from koo.server_words import by_words
from koo.sqlstates import AT_CONNECT, LOST, REPORTED, SQLSTATES, Meaning, by_code
from koo.testing.clock import StandingClock
from koo.testing.postgres import PostgresServer
from tests.database.conftest import Place
from tests.database.support import INSERT, ONE, notes, opened, options, run, with_notes

DRIVERS = ["psycopg", "asyncpg"]


class Said(Exception):
    """An error as a PostgreSQL driver would raise it: `diag` is psycopg's attribute, `severity_en` asyncpg's."""

    def __init__(self, sqlstate: str, severity: str | None) -> None:
        super().__init__("said")
        self.sqlstate = sqlstate
        self.severity_en = severity


# ── the tables ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", sorted(REPORTED))
def test_a_code_with_severity_error_is_not_a_lost_connection_but_the_same_code_with_severity_fatal_may_be(
    code: str,
) -> None:
    state = code if len(code) == 5 else f"{code}0ZZ"
    report = explain(Said(state, "ERROR"))
    assert report is REPORTED[code]
    assert report.verdict is NEUTRAL and not report.is_loss and not report.repeatable
    assert report.drop is report.drop.KEEP
    assert by_code(Said(state, "FATAL")) is (SQLSTATES.get(state) or SQLSTATES.get(state[:2]))


@pytest.mark.parametrize("state", ["08000", "08001", "08003", "08004", "08006", "57P01", "57P02"])
@pytest.mark.parametrize("severity", ["FATAL", "PANIC", None])
def test_a_fatal_report_or_an_error_of_the_driver_itself_is_a_loss(state: str, severity: str) -> None:
    assert explain(Said(state, severity)).is_loss


@pytest.mark.parametrize("code", sorted(AT_CONNECT))
def test_an_invalid_statement_is_not_a_refused_connection(code: str) -> None:
    state = code if len(code) == 5 else f"{code}0ZZ"
    refused = explain(Said(state, "FATAL"), ScopeStage.CONNECT)
    assert refused is AT_CONNECT[code]
    assert refused.verdict is FAILURE and not refused.repeatable
    assert explain(Said(state, "ERROR"), ScopeStage.CONNECT).verdict is NEUTRAL


# ── what a healthy server reports ─────────────────────────────────────────────────────────────────────────────────


async def raises(session: AsyncSession, state: str) -> None:
    """Raise an error as a foreign table, dblink or an application's own function would."""
    await session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'elsewhere' USING errcode = '{state}'; END $$"))


@pytest.mark.parametrize(
    "state", ["08001", "08006", "08P01", "28P01", "3D000", "53200", "53300", "57P01", "57P03", "HV00N"]
)
def test_a_reported_error_leaves_the_connection_and_the_circuit_alone(pg: Place, state: str) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            runs = 0

            async def work(session: AsyncSession) -> None:
                nonlocal runs
                runs += 1
                await raises(session, state)

            for _ in range(6):
                with pytest.raises(DBAPIError):
                    await database.transaction(work)
            assert runs == 6, "it is unknown what another server did, so it is not repeated"
            unharmed(database)

    run(main)


def unharmed(database: Database) -> None:
    made = database.get_pool_metrics()["connection_metrics"]
    assert (made["created"], made["broken"], made["closed"]) == (1, 0, 0)
    assert database.guard.breaker.phase is CLOSED and database.guard.breaker.consecutive == 0
    assert database.guard.tally.totals().verdicts[FAILURE] == 0


def test_a_query_over_its_own_limit_of_temporary_files_does_not_count(pg: Place) -> None:
    async def main() -> None:
        async with opened(pg.url) as database:
            for _ in range(6):
                with pytest.raises(DBAPIError) as caught:
                    async with database.session_scope() as session:
                        await session.execute(text("SET LOCAL temp_file_limit = '64kB'"))
                        await session.execute(text("SET LOCAL work_mem = '64kB'"))
                        await session.execute(text("SELECT g FROM generate_series(1, 50000) g ORDER BY -g"))
                assert getattr(caught.value.orig, "sqlstate", None) == "53400"
            unharmed(database)

    run(main)


def test_a_full_disk_refuses_writes_and_allows_reads(pg: Place) -> None:
    async def main() -> None:
        async with with_notes(pg.url) as database:
            async with database.session_scope() as session:
                await session.execute(INSERT, {"n": 1})
            for _ in range(6):
                with pytest.raises(DBAPIError):
                    async with database.session_scope() as session:
                        await raises(session, "53100")
            assert await notes(database) == [1]
            assert database.get_health()["conditions"] == ["read_only"]
            unharmed(database)

    run(main)


def test_the_full_disk_condition_ends_with_time_not_with_a_probe(pg: Place) -> None:
    """A probe only reads. As long as writes keep failing, the condition and its alert remain."""

    async def main() -> None:
        clock = StandingClock()
        database = Database(options(pg.url), clock=clock)
        for _ in range(2):
            with pytest.raises(DBAPIError):
                async with database.session_scope() as session:
                    await raises(session, "53100")
            clock.now += 59.0
            assert (await database.health_check())["conditions"] == ["read_only"]
        clock.now += 2.0
        assert (await database.health_check())["conditions"] == []
        await database.close()

    run(main)


def test_an_error_reported_at_commit_means_that_the_transaction_did_not_happen(pg: Place) -> None:
    """COMMIT runs deferred triggers, which may access a foreign table."""

    async def main() -> None:
        async with with_notes(pg.url) as database:
            async with database.session_scope() as session:
                for statement in (
                    "CREATE FUNCTION elsewhere() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                    " RAISE EXCEPTION 'elsewhere' USING errcode = '08006'; END $$",
                    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
                    " FOR EACH ROW EXECUTE FUNCTION elsewhere()",
                ):
                    await session.execute(text(statement))
            with pytest.raises(DBAPIError) as caught:
                async with database.session_scope() as session:
                    await session.execute(INSERT, {"n": 1})
            assert not isinstance(caught.value, CommitOutcomeUnknown)
            assert await notes(database) == []
            unharmed(database)

    run(main)


# ── how a server refuses a connection ─────────────────────────────────────────────────────────────────────────────


async def refusal(url: str, **engine_args: object) -> DatabaseUnavailable:
    """The error with which a scope is refused; it must be counted once per attempt."""
    database = Database(options(url), engine_args=engine_args)
    try:
        with pytest.raises(DatabaseUnavailable) as caught:
            async with database.session_scope():
                pytest.fail("the block must not begin")
        assert database.guard.tally.totals().verdicts[FAILURE] == caught.value.attempts
    finally:
        await database.close()
    return caught.value


@pytest.mark.parametrize("driver", DRIVERS)
def test_each_reason_for_a_refused_connection_has_its_kind_and_is_not_repeated(driver: str) -> None:
    with PostgresServer(18) as server:
        for statement in (
            "CREATE ROLE plain LOGIN",
            "CREATE ROLE idle NOLOGIN",
            "CREATE ROLE barred LOGIN",
            "CREATE DATABASE closed",
            "REVOKE CONNECT ON DATABASE closed FROM public",
            "CREATE DATABASE shut ALLOW_CONNECTIONS false",
        ):
            server.sql(statement)
        rules = server.data_directory / "pg_hba.conf"
        rules.write_text(
            f"host all barred 127.0.0.1/32 reject\nhost shut nobody 127.0.0.1/32 trust\n{rules.read_text()}"
        )
        server.sql("SELECT pg_reload_conf()")

        def as_user(name: str, database: str = "postgres") -> str:
            url = server.url("psycopg" if driver == "psycopg" else "asyncpg", database)
            return url.replace("postgres:koo-test@", f"{name}:koo-test@")

        def setting(name: str, value: str) -> dict[str, object]:
            given = (
                {"options": f"-c {name}={value}"}
                if driver == "psycopg"
                else {"server_settings": {name: value}}
            )
            return {"connect_args": given}

        async def main() -> None:
            for error, kind, word in (
                (await refusal(as_user("nobody")), Kind.AUTH, "user"),
                (await refusal(as_user("idle")), Kind.AUTH, "user"),
                (await refusal(as_user("barred")), Kind.AUTH, "address"),
                (await refusal(as_user("plain", "closed")), Kind.AUTH, ""),
                (await refusal(as_user("plain", "shut")), Kind.NOT_FOUND, ""),
                (
                    await refusal(as_user("plain"), **setting("statement_timot", "5")),
                    Kind.NOT_CONFIGURED,
                    "option",
                ),
                (
                    await refusal(as_user("plain"), **setting("statement_timeout", "x")),
                    Kind.NOT_CONFIGURED,
                    "option",
                ),
                (
                    await refusal(as_user("plain"), **setting("log_statement", "all")),
                    Kind.NOT_CONFIGURED,
                    "option",
                ),
            ):
                assert (error.kind, error.attempts, error.retry_after_s) == (kind, 1, None), str(error)
                assert word in error.reason and "reached" not in error.reason
                assert "koo-test" not in str(error)

        run(main)


# ── errors of poolers ─────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def refusing(
    words: str, state: str, severity: str = "FATAL", *, times: float = float("inf")
) -> AsyncIterator[int]:
    """A port on which each connection is refused with this text, in the wire protocol.

    After `times` refusals it no longer responds.
    """
    came, over = 0, asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            if came > times:
                await over.wait()  # without waiting for the client, whose error may keep the socket open
                writer.close()
                return
            length, code = struct.unpack("!II", await reader.readexactly(8))
            if code == 80877103:  # asks for TLS
                writer.write(b"N")
                length, code = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            body = f"S{severity}\0V{severity}\0C{state}\0M{words}\0\0".encode()
            writer.write(b"E" + struct.pack("!I", 4 + len(body)) + body)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            over.set()


OVERLOADED, AUTH, AWAY = Kind.OVERLOADED, Kind.AUTH, Kind.CONNECTION
POOLERS_SAY: list[tuple[str, str, Kind, bool]] = [
    # PgBouncer uses one code for all of its own errors
    ("08P01", "no more connections allowed (max_client_conn)", OVERLOADED, True),
    ("08P01", "query_wait_timeout", OVERLOADED, True),
    ("08P01", "server login has been failing, try again later (server_login_retry)", AWAY, True),
    ("08P01", "server login failed: FATAL password authentication failed", AWAY, True),
    ("08P01", "no such user: u", AUTH, False),
    ("08P01", "SASL authentication failed", AUTH, False),
    ("08P01", "no such database: d", Kind.NOT_FOUND, False),
    ("08P01", "SSL required", Kind.NOT_CONFIGURED, False),
    ("08P01", "unsupported startup parameter: search_path", Kind.NOT_CONFIGURED, False),
    ("08P01", "transaction blocks not allowed in statement pooling mode", Kind.NOT_CONFIGURED, False),
    ("08P01", "pgbouncer cannot connect to server", AWAY, True),
    ("08P01", "pgbouncer is shutting down", AWAY, True),
    ("08P01", "client connections exceeded (max_db_client_connections)", OVERLOADED, True),
    ("08P01", "bouncer config error", AWAY, True),
    # Supavisor
    ("XX000", "Unable to check out process from the pool due to timeout", OVERLOADED, True),
    (
        "28000",
        "(EMAXCONNSESSION) max clients reached in session mode - limited to pool_size: 15",
        OVERLOADED,
        True,
    ),
    ("XX000", "Max client connections reached", OVERLOADED, True),
    (
        "XX000",
        "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 15000ms",
        OVERLOADED,
        True,
    ),
    ("XX000", "Tenant or user not found", AUTH, False),
    ("XX000", "(ECIRCUITBREAKER) too many authentication failures", AUTH, False),
    # RDS and its proxy
    ("28000", 'PAM authentication failed for user "u"', AUTH, False),
    ("08000", "Timed-out waiting to acquire database connection", OVERLOADED, True),
    ("28000", "This RDS proxy has no credentials for the role u", AUTH, False),
    ("28000", "The IAM authentication failed for the role u", AUTH, False),
    ("08000", "This RDS Proxy is currently unable to process your request", AWAY, True),
    # Neon, Azure, Pgpool-II
    ("XX000", "Control plane request failed", AWAY, True),
    ("08006", "connection is insecure (try using `sslmode=require`)", Kind.NOT_CONFIGURED, False),
    ("28000", "SSL connection is required. Please specify SSL options", Kind.NOT_CONFIGURED, False),
    ("XX000", "failed to authenticate with backend using SCRAM", AWAY, True),
    ("57000", "all backend nodes are down, pgpool requires at least one valid node", AWAY, True),
    # PostgreSQL itself
    ("57014", "canceling authentication due to timeout", Kind.TIMEOUT, True),
    ("28000", 'LDAP authentication failed for user "u"', AUTH, False),
    ("28000", 'no pg_hba.conf entry for host "::1", user "u", database "d", no encryption', AUTH, False),
    ("53300", 'too many connections for role "u"', OVERLOADED, True),
    ("57P03", "the database system is starting up", AWAY, True),
]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("state", "words", "kind", "again"), POOLERS_SAY, ids=lambda value: str(value)[:24])
def test_a_refusal_is_recognised_by_its_text(
    driver: str, state: str, words: str, kind: Kind, again: bool
) -> None:
    """psycopg passes on the text but no code, and a pooler has one code for everything. Overload is repeated."""

    async def main() -> None:
        async with refusing(words, state) as port:
            tls = "sslmode" if driver == "psycopg" else "ssl"
            error = await refusal(f"postgresql+{driver}://u:koo-test@127.0.0.1:{port}/d?{tls}=disable")
        assert error.kind is kind
        assert (error.attempts > 1, error.retry_after_s is not None) == (again, again)
        assert "reached" not in error.reason and "protocol" not in error.reason

    run(main)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_timeout_after_refusals_names_the_poolers_last_error(driver: str) -> None:
    async def main() -> None:
        async with refusing("no more connections allowed (max_client_conn)", "08P01", times=2) as port:
            tls = "sslmode" if driver == "psycopg" else "ssl"
            url = f"postgresql+{driver}://u:koo-test@127.0.0.1:{port}/d?{tls}=disable"
            async with opened(url, pool_timeout_s=3.0) as database:
                with pytest.raises(DatabaseTimeout) as caught:
                    async with database.session_scope():
                        pytest.fail("the block must not begin")
        assert caught.value.reason.endswith("; before that: the pooler has no connection left")
        assert caught.value.last_error is not None and caught.value.last_error.kind is Kind.OVERLOADED

    run(main)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_older_pooler_may_refuse_with_severity_error(driver: str) -> None:
    """An older PgBouncer sends the refusal as ERROR, and still closes the connection."""

    async def main() -> None:
        async with refusing("no more connections allowed", "08P01", "ERROR") as port:
            tls = "sslmode" if driver == "psycopg" else "ssl"
            error = await refusal(f"postgresql+{driver}://u:koo-test@127.0.0.1:{port}/d?{tls}=disable")
        assert error.kind is Kind.OVERLOADED and error.attempts > 1

    run(main)


@pytest.mark.parametrize("wrapped", [True, False])
def test_errors_of_the_users_own_engine_or_driver_are_judged_alike(wrapped: bool) -> None:
    """Under `execute` the error may be SQLAlchemy's or asyncpg's."""

    def judged(state: str, severity: str, words: str = "said") -> tuple[Kind, object]:
        error = Said(state, severity)
        error.args = (words,)
        fault = classify_database(DBAPIError(None, None, error) if wrapped else error)
        assert fault is not None
        return fault.kind, fault.verdict

    assert judged("08001", "ERROR") == (Kind.CONNECTION, NEUTRAL)
    assert judged("08006", "FATAL") == (Kind.CONNECTION, FAILURE)
    assert judged("08P01", "FATAL", "no more connections allowed (max_client_conn)") == (
        Kind.OVERLOADED,
        FAILURE,
    )
    assert judged("42501", "FATAL", 'permission denied for database "d"') == (Kind.AUTH, FAILURE)
    assert judged("42501", "ERROR") == (Kind.PERMISSION, NEUTRAL)


def test_a_statements_error_that_quotes_a_pooler_is_not_a_poolers_error() -> None:
    quoted = Said("22023", "ERROR")
    quoted.args = ("no more connections allowed",)
    assert explain(DBAPIError(None, None, quoted)).kind is Kind.INVALID_REQUEST


@pytest.mark.parametrize("words", ["query timeout", "idle transaction timeout"])
def test_a_pooler_that_ends_a_long_statement_or_transaction_is_not_a_broken_server(words: str) -> None:
    """PgBouncer sends no severity in English, and psycopg sees the closed connection only with the next statement."""
    ended = Said("08P01", None)
    ended.args = (words,)
    meaning = explain(ended)
    assert (meaning.kind, meaning.verdict, meaning.repeatable) == (Kind.TIMEOUT, NEUTRAL, False)
    assert meaning.drop is meaning.drop.ONE
    assert explain(ended, ScopeStage.COMMIT).unsure, "the server behind it may have committed"


def test_asyncpgs_error_for_an_ended_connection_means_what_the_server_said() -> None:
    """The text cannot be relied on: it is in the server's language."""
    fields = {"V": "FATAL", "C": "25P04", "M": "Verbindung wird abgebrochen"}
    said = asyncpg.PostgresError.new(fields)
    ended = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    assert explain(DBAPIError(None, None, ended), lost=True) is LOST
    ended.__cause__ = said
    meaning = explain(DBAPIError(None, None, ended), lost=True)
    assert (meaning.kind, meaning.verdict, meaning.repeatable) == (Kind.TIMEOUT, NEUTRAL, False)


@pytest.mark.parametrize("stage", [ScopeStage.BODY, ScopeStage.COMMIT])
def test_a_pooler_that_loses_its_server_ends_the_session_and_that_is_a_lost_connection(
    stage: ScopeStage,
) -> None:
    """PgBouncer closes the connection after each of its own errors, so one without a rule is a loss too."""
    ended = Said("08P01", None)
    ended.args = ("server conn crashed?",)
    meaning = explain(ended, stage)
    assert meaning.is_loss and meaning.repeatable and meaning.unsure
    ended.severity_en = "FATAL"
    assert not explain(ended, stage).repeatable, "a server's own protocol error is not repeated"


@pytest.mark.parametrize(
    "words", ["prepared statement '__asyncpg_1__' not found", "prepared statement name is already in use"]
)
def test_a_pooler_that_misses_a_prepared_statement_names_the_setting(words: str) -> None:
    ended = Said("08P01", None)
    ended.args = (words,)
    assert "DATABASE_PREPARED_STATEMENTS=false" in explain(ended).says


# ── other languages ───────────────────────────────────────────────────────────────────────────────────────────────

SAYINGS = (Kind.AUTH, Kind.OVERLOADED, Kind.NOT_FOUND, Kind.AUTH, Kind.CONNECTION, Kind.NOT_CONFIGURED)
"""Texts for a wrong password, a full server, a missing database and role, a startup, and an unknown option."""
LANGUAGES: list[tuple[str, str, list[str]]] = [
    (
        "de",
        "FATAL",
        [
            "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen",
            "tut mir leid, schon zu viele Verbindungen",
            "Datenbank »u« existiert nicht",
            "Rolle »u« existiert nicht",
            "das Datenbanksystem startet",
            "unbekannter Konfigurationsparameter »u«",
        ],
    ),
    (
        "es",
        "FATAL",
        [
            "la autentificación password falló para el usuario «u»",
            "lo siento, ya tenemos demasiados clientes",
            "no existe la base de datos «u»",
            "no existe el rol «u»",
            "el sistema de base de datos está iniciándose",
            "parámetro de configuración «u» no reconocido",
        ],
    ),
    (
        "fr",
        "FATAL",
        [
            "authentification par mot de passe échouée pour l'utilisateur  « u »",
            "désolé, trop de clients sont déjà connectés",
            "la base de données « u » n'existe pas",
            "le rôle « u » n'existe pas",
            "le système de bases de données se lance",
            "paramètre de configuration « u » non reconnu",
        ],
    ),
    (
        "it",
        "FATALE",
        [
            'autenticazione con password fallita per l\'utente "u"',
            "spiacente, troppi client già connessi",
            'il database "u" non esiste',
            'il ruolo "u" non esiste',
            "il database si sta avviando",
            'parametro di configurazione "u" sconosciuto',
        ],
    ),
    (
        "ja",
        "FATAL",
        [
            'ユーザー"u"のパスワード認証に失敗しました',
            "現在クライアント数が多すぎます",
            'データベース"u"は存在しません',
            'ロール"u"は存在しません',
            "データベースシステムは起動処理中です",
            '設定パラメータ"u"は不明です',
        ],
    ),
    (
        "ka",
        "ფატალური",
        [
            'პაროლით ავთენტიფიკაცია მომხმარებლისთვის "u" ვერ მოხერხდა',
            "უკაცრავად, უკვე მეტისმეტად ბევრი კლიენტია",
            'მონაცემთა ბაზა "u" არ არსებობს',
            'როლი არ არსებობს: "u"',
            "მიმდინარეობს მონაცემთა ბაზის სისტემის გაშვება",
            'კონფიგურაციის უცნობი პარამეტრი: "u"',
        ],
    ),
    (
        "ko",
        "치명적오류",
        [
            '사용자 "u"의 password 인증을 실패했습니다',
            "최대 동시 접속자 수를 초과했습니다.",
            '"u" 데이터베이스 없음',
            '"u" 롤(role) 없음',
            "데이터베이스 시스템이 새로 가동 중입니다.",
            '알 수 없는 환경 매개 변수 이름: "u"',
        ],
    ),
    (
        "ru",
        "ВАЖНО",
        [
            'пользователь "u" не прошёл проверку подлинности (по паролю)',
            "извините, уже слишком много клиентов",
            'база данных "u" не существует',
            'роль "u" не существует',
            "система баз данных запускается",
            'нераспознанный параметр конфигурации: "u"',
        ],
    ),
    (
        "sv",
        "FATALT",
        [
            'Lösenordsautentisering misslyckades för användare "u"',
            "ledsen, för många klienter",
            'databasen "u" existerar inte',
            'rollen "u" finns inte',
            "databassystemet startar upp",
            'okänd konfigurationsparameter "u"',
        ],
    ),
    (
        "uk",
        "ФАТАЛЬНО",
        [
            'користувач "u" не пройшов автентифікацію за допомогою пароля',
            "вибачте, вже забагато клієнтів",
            'бази даних "u" не існує',
            'роль "u" не існує',
            "система бази даних запускається",
            'нерозпізнаний параметр конфігурації "u"',
        ],
    ),
    (
        "zh_CN",
        "致命错误",
        [
            '用户 "u" Password 认证失败',
            "对不起, 已经有太多的客户",
            '数据库 "u" 不存在',
            '角色 "u" 不存在',
            "数据库系统启动中",
            '未认可的配置参数 "u"',
        ],
    ),
]


def refused_by_libpq(severity: str, words: str) -> Meaning:
    return by_words(
        psycopg.OperationalError(
            f'connection failed: connection to server at "127.0.0.1", port 5432 failed: {severity}:  {words}'
        )
    )


@pytest.mark.parametrize(("language", "fatal", "sayings"), LANGUAGES, ids=[row[0] for row in LANGUAGES])
def test_a_server_may_report_in_another_language(language: str, fatal: str, sayings: list[str]) -> None:
    """`lc_messages` translates the severity too, and libpq does not pass on a code."""
    for kind, words in zip(SAYINGS, sayings, strict=True):
        meaning = refused_by_libpq(fatal, words)
        assert meaning.kind is kind, words
        assert "its log says why" not in meaning.says


def test_an_unknown_refusal_still_counts_as_a_response_of_a_server() -> None:
    meaning = refused_by_libpq("FATAL", "something quite new")
    assert "refused the connection" in meaning.says and meaning.repeatable


def test_the_scope_continues_after_each_reported_error(pg: Place) -> None:
    """A savepoint around a statement that may fail elsewhere preserves the transaction."""

    async def main() -> None:
        async with opened(pg.url) as database:
            async with database.session_scope() as session:
                with pytest.raises(DBAPIError):
                    async with session.begin_nested():
                        await raises(session, "08001")
                assert await session.scalar(ONE) == 1
            unharmed(database)

    run(main)
