"""The error texts of servers, poolers and libpq, for errors without an SQLSTATE or with the wrong one.

When a connection is refused, libpq does not pass on the SQLSTATE, only the server's message, in the server's language
(`lc_messages`). A pooler uses a single code for all of its own errors: PgBouncer 08P01, Supavisor XX000. So the text is
the only way to distinguish a wrong password from a full server. It is read only if the server or pooler refuses or ends
the connection, because the error of a statement may quote anything.

The rules are regular expressions for such messages, and the first match counts. The translations are PostgreSQL's own,
shortened as far as they stay distinct. A message that no rule matches still comes from a server, so the server is not
reported as unreachable.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable
from re import Pattern

from koo.shortages import shortage_in_words, shortage_now
from koo.sqlstates import (
    AT_CONNECT,
    FULL,
    IDLED,
    LATE,
    LOST,
    MISCONFIGURED,
    MISSING,
    OVERSTAYED,
    REFUSED,
    SHORT_HERE,
    SQLSTATES,
    STARTING,
    UNPREPARED,
    Meaning,
    find,
    sqlstate_of,
)

Rules = tuple[tuple[Pattern[str], Meaning], ...]


def _rules(*rows: tuple[str, Meaning]) -> Rules:
    return tuple((re.compile(words, re.IGNORECASE), meaning) for words, meaning in rows)


NO_LOGIN_BEHIND = STARTING.saying("the pooler cannot connect to the server behind it")
POOLER_FULL = FULL.saying("the pooler has no connection left")
WANTS_TLS = MISCONFIGURED.saying("it requires TLS: request it in the URL (psycopg: sslmode, asyncpg: ssl)")
UNKNOWN_USER = REFUSED.saying("the pooler does not know this user")

POOLERS: Rules = _rules(
    # PgBouncer
    (r"no more connections allowed|client connections exceeded", POOLER_FULL),
    (r"query_wait_timeout", FULL.saying("the pooler had no connection to the server in time")),
    (
        r"server login (?:has been failing|failed)|client_login_timeout \(server down\)|cannot connect to server",
        NO_LOGIN_BEHIND,
    ),
    (r"^client_login_timeout", LATE),
    (r"no such user", UNKNOWN_USER),
    (r"(?:auth|SASL authentication|password check) failed|login rejected", REFUSED),
    (r"no such database|database \S+ is disabled|database removed", MISSING),
    (r"(?:SSL|TLS) (?:connection |client certificate )?(?:is )?required|connection is insecure", WANTS_TLS),
    (
        r"unsupported startup parameter",
        MISCONFIGURED.saying("the pooler does not accept an option in its URL"),
    ),
    (r"(?:idle )?transaction[ _]timeout", OVERSTAYED),
    (r"query[ _]timeout", OVERSTAYED.saying("the pooler ended a statement that took too long")),
    (
        r"transaction blocks not allowed",
        MISCONFIGURED.saying(
            "the pooler is in statement mode, which allows no transactions: set its pool_mode to transaction or session"
        ),
    ),
    (r"client_idle_timeout", IDLED),
    (r"prepared statement .*(?:not found|already in use)", UNPREPARED),
    # Supavisor
    (
        r"max(?:imum)? clients? (?:connections? )?(?:are )?reached|EMAX\w*CONN|MaxClientsInSessionMode",
        POOLER_FULL,
    ),
    (r"ECHECKOUTTIMEOUT|check ?out (?:connection |process |timeout|timed out)", POOLER_FULL),
    (
        r"ECIRCUITBREAKER|too many authentication",
        REFUSED.saying("the pooler refuses logins after too many failed ones"),
    ),
    (r"tenant or user not found", UNKNOWN_USER),
    # RDS Proxy
    (r"timed[- ]out waiting to acquire", POOLER_FULL),
    (r"no credentials for the role|IAM authentication failed|password that was provided for", REFUSED),
    (r"requires? TLS", WANTS_TLS),
    (r"RDS Proxy is currently unable|associated read/write instances", NO_LOGIN_BEHIND),
    # Odyssey, PgCat, PgDog, Neon
    (r"too many client tcp|too many (?:database )?connections? attempts", POOLER_FULL),
    (r"AllServersDown|pool is down|failed to get remote server|connect to compute node", NO_LOGIN_BEHIND),
    (r"(?:Console|Control plane) request failed", NO_LOGIN_BEHIND),
    # Pgpool-II
    (r"all backend nodes are down|failed to authenticate with backend", NO_LOGIN_BEHIND),
    (r"no pool configured|route for \S+ is not found|endpoint \S+ (?:is|has been) disabled", MISSING),
)
"""Messages of poolers. They are checked before the code, which is the same for all of a pooler's errors."""

TOO_MANY = r"""too many (?:clients|connections)|connection slots are reserved|zu viele Verbindungen
    |Verbindungen sind für|demasiad[oa]s (?:clientes|conexiones)|conexiones restantes
    |trop de (?:clients|connexions)|connexions restants|tropp[ei] (?:client|connessioni)|slot di connessione
    |för många (?:klienter|uppkopplingar)|anslutningsslottar|слишком много|слоты подключений
    |(?:забагато|занадто багато) (?:клієнтів|підключень)|слоти підключень|クライアント数が多|接続が多すぎ
    |接続スロット|접속자? ?수를 초과|연결 슬롯|太多的客户|连接太多|保留的连接位置|მეტისმეტად ბევრი|ძალიან ბევრი"""
WRONG_PASSWORD = r"""password authentication failed|Passwort-Auth|autentificación password|mot de passe échouée
    |autenticazione con password|Lösenordsaut|\(по паролю\)|за допомогою пароля|パスワード認証|password 인증
    |Password 认证|პაროლით"""
NO_LOGIN = r"""authentication failed|pg_hba\.conf
    |(?-i:\b(?:PAM|LDAP|GSSAPI|SSPI|RADIUS|Ident|Peer|SCRAM|OAuth)\b)|is not permitted to log in
    |role\b.* does not exist|(?-i:(?<![A-Za-z])CONNECT(?![A-Za-z]))|privilegios de conexión|Authentifizierung
    |Rolle\b.* existiert nicht|zum Einloggen|autentificación|no existe el rol|permite conectarse
    |authentification|le rôle\b.* n'existe pas|autorisé à se connecter|autenticazione|il ruolo\b.* non esiste
    |effettuare il login|autentisering|rollen\b.* finns inte|tillåts inte logga in|проверку подлинности
    |роль .* не существует|вход запрещён|автентифікацію|роль .* не існує|вхід не дозволений|認証に失敗
    |ロール.*存在しません|ログインが許可|인증을 실패|롤\(role\) 없음|롤은 접속을 허용하지|认证.*失败
    |角色.*不存在|不允许角色|ავთენტიკაცი|ავთენტიფიკაცი|როლი არ არსებობს|როლს შესვლის"""
NO_SUCH_OPTION = r"""unrecognized configuration parameter|invalid value for parameter
    |invalid command-line argument|permission denied to set parameter|requires a (?:numeric|Boolean) value
    |is outside the valid range|Konfigurationsparameter|Wert für Parameter|Kommandozeilenargument
    |parámetro de configuración|para el parámetro|paramètre de configuration|pour le paramètre
    |parametro di configurazione|per il parametro|konfigurationsparameter|för parameter|параметр конфигурации
    |значение для параметра|параметр конфігурації|значення параметру|設定パラメータ|パラメータ.*値
    |환경 매개 변수|매개 변수의 값|配置参数|参数.*的值|კონფიგურაციის|პარამეტრისთვის|um Parameter
    |cambiar la opción|línea de órdenes|initialiser le paramètre|ligne de commande|impostare il parametro
    |riga di comando|sätta parameter|kommandorad|изменения параметра|командной строки|встановлення параметру
    |командного рядка|パラメータ.*設定|コマンドライン|매개 변수를 지정|명령행|设置参数|命令行|პარამეტრის \("""
NO_DATABASE = r"""database\b.* does not exist|is not currently accepting connections
    |Datenbank\b.* existiert nicht|akzeptiert gegenwärtig keine|no existe la base de datos
    |base de datos .* no acepta conexiones|base de données .* n'(?:existe pas|accepte plus)
    |il database\b.* non esiste|attualmente non accetta|databasen\b.* existerar inte|för närvarande inte emot
    |база данных .* не существует|база .* не принимает|бази даних .* не існує|база даних .* не приймає
    |データベース.*(?:は存在しません|接続を受け付けません)|데이터베이스 없음|현재 접속을 허용하지
    |数据库 ?".*(?:不存在|当前不接受)|მონაცემთა ბაზა .* არ არსებობს|ბაზა .* არ იღებს"""
COMES_UP = r"""is starting up|is shutting down|in recovery mode|(?:not yet|not) accepting connections
    |Datenbanksystem|sistema de bases? de datos|système de bases? de données|il database si sta
    |modalità di ripristino|sistema di database|databassystemet|система (?:баз данных|БД)|система бази даних
    |データベースシステム|데이터베이스 시스템|数据库系统|ბაზის სისტემ"""


def _joined(words: str) -> str:  # a rule may be written on several lines
    return re.sub(r"\n\s*", "", words)


OPTION = re.compile(_joined(NO_SUCH_OPTION), re.IGNORECASE)
REFUSALS: Rules = _rules(
    (r"canceling authentication due to timeout", LATE),
    (_joined(TOO_MANY), FULL),
    (_joined(WRONG_PASSWORD), SQLSTATES["28P01"]),
    (_joined(COMES_UP), STARTING),
    (_joined(NO_SUCH_OPTION), MISCONFIGURED),
    (_joined(NO_LOGIN), REFUSED),
    (_joined(NO_DATABASE), MISSING),
)
"""PostgreSQL's own messages, in all of its languages."""
CERTIFICATES: Rules = _rules(
    (
        r"root certificate file",
        MISCONFIGURED.saying(
            "the file of trusted TLS certificate authorities cannot be read:"
            " set one in PGSSLROOTCERT (psycopg: or as sslrootcert)"
        ),
    ),
    (
        r"(?:hostname|IP address) mismatch|does not match host name",
        MISCONFIGURED.saying("the server's TLS certificate is not for the host name in the URL"),
    ),
    (
        r"certificate has expired|not yet valid",
        MISCONFIGURED.saying("the server's TLS certificate has expired, or is not valid yet"),
    ),
    (
        r"certificate verify failed",
        MISCONFIGURED.saying(
            "the server's TLS certificate is not trusted: set its authority's file in PGSSLROOTCERT"
            " (psycopg: or as sslrootcert)"
        ),
    ),
    (
        r"private key file|certificate file",
        MISCONFIGURED.saying("the client's own TLS certificate, or its key, cannot be used"),
    ),
    (
        r"alert (?:certificate required|bad certificate|unknown ca)",
        MISCONFIGURED.saying("the server requires a client certificate that it trusts, and received none"),
    ),
)
"""Messages of TLS libraries about certificates. None of these errors goes away without action."""
CLIENT: Rules = CERTIFICATES + _rules(
    (r"no password supplied", REFUSED.saying("the server requires a password")),
    (
        r"authentication method|channel binding",
        REFUSED.saying("the server and the URL have no authentication method in common"),
    ),
    (r"connection option|sslmode value|invalid port|must be one of", MISCONFIGURED),
    (
        r"session is (?:not )?read-only|in hot standby mode|target_session_attrs",
        STARTING.saying("no server has the role that the URL requires"),
    ),
    (r"could not fork new process", FULL),
)
"""Messages that libpq and asyncpg write themselves, without one from the server."""
UNKNOWN_OPTION = re.compile(r"""(?:unexpected keyword argument|invalid connection option) ['"](\w+)['"]""")
"""How asyncpg's `connect` and libpq name an option that they do not know."""
REASONS: tuple[tuple[str, str], ...] = (
    ("resolve", "the host name cannot be resolved"),
    ("refused", "the server refuses connections"),
    ("response to SSL negotiation", "the server at that address is not PostgreSQL"),
    ("support SSL", "the server does not support TLS, which the URL requires"),
    ("SSL upgrade", "the server does not support TLS, which the URL requires"),
    ("certificate", "the TLS handshake failed"),
    ("closed the connection unexpectedly", "the server closed the connection"),
)
"""Why a server could not be reached."""
SPOKEN = re.compile(r"failed: (\S{1,30}):  (.*)", re.DOTALL)
"""How libpq quotes a server: the severity, in any language, and two spaces. libpq's own messages have neither."""
UNTOLD = frozenset({"08P01", "XX000", "57014"})
"""Codes that do not tell why a connection was refused: those that poolers use for everything, and a cancelled login."""
UNKNOWN_REFUSAL = STARTING.saying("the server refused the connection; its log says why")


def said(original: BaseException) -> str:
    """The server's or pooler's message, without libpq's prefix, which contains the host and the port."""
    text = str(original)
    spoken = SPOKEN.search(text)
    return spoken[2] if spoken else text


def of_pooler(original: BaseException) -> Meaning | None:
    """The meaning of a pooler's refusal or disconnect; None if the text is not a pooler's own."""
    return _first(POOLERS, said(original))


def at_connect(original: BaseException) -> Meaning | None:
    """The meaning of a refused connection's code, if the code means something else for a statement."""
    state = sqlstate_of(original)
    # 42501 usually means that the user may not connect, but also that it may not set an option in the URL.
    if state == "42501" and OPTION.search(said(original)):
        return MISCONFIGURED
    if state in UNTOLD:
        return _first(REFUSALS, said(original)) or UNKNOWN_REFUSAL
    return None if state is None else find(AT_CONNECT, state)


def by_certificate(original: BaseException) -> Meaning | None:
    """The meaning of an error of Python's `ssl` about certificates, which asyncpg passes through; else None."""
    return _first(CERTIFICATES, str(original)) if isinstance(original, ssl.SSLError) else None


def by_option(original: BaseException) -> Meaning | None:
    """The meaning of an option in the URL that the driver does not know; else None."""
    # Not a secret: `check_place` refuses a URL in which the rest of a password would be read as an option.
    unknown = UNKNOWN_OPTION.search(str(original))
    if unknown is None:
        return None
    instead = ": asyncpg calls it ssl" if unknown[1] == "sslmode" else ""
    return MISCONFIGURED.saying(f"the driver does not know the option {unknown[1]} in its URL{instead}")


def by_words(original: BaseException) -> Meaning:
    """The meaning of a refused connection without a code, by its text."""
    text = str(original)
    spoken = SPOKEN.search(text)
    if spoken is None:
        short = shortage_in_words(text)
        meaning = None if short is not None else by_option(original) or _first(CLIENT, text)
        # Without a free file descriptor libpq may report nothing specific.
        short = short or (shortage_now() if meaning is None else None)
        return SHORT_HERE.saying(short) if short is not None else meaning or LOST
    words = spoken[2]
    return _first(POOLERS, words) or _first(REFUSALS, words) or UNKNOWN_REFUSAL


def _first(rules: Iterable[tuple[Pattern[str], Meaning]], text: str) -> Meaning | None:
    return next((meaning for pattern, meaning in rules if pattern.search(text)), None)


def sentence_of(original: BaseException, meaning: Meaning) -> str:
    """The reason why a database cannot be used, as a sentence."""
    if meaning is not LOST:
        return meaning.says or f"it failed with {type(original).__name__}"
    if isinstance(original, socket.gaierror):
        return "the host name cannot be resolved"
    if isinstance(original, ConnectionRefusedError):
        return "the server refuses connections"
    text = str(original)
    return next((reason for words, reason in REASONS if words in text), "the server cannot be reached")
