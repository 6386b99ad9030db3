"""How long a breaker stays open and when recovery may be tested: the numbers, each with its reason."""

HINT_S_MAX = 31 * 86_400.0
"""A wait that the server itself asks for is accepted up to a month: `open_s_max` caps only koo's own guesses."""
IDLE_RECOVERIES = 3
"""After this many recovery times without a call, a service that can be reached is assumed to be well. Three recovery
times are as long as the first three openings of a failing service would last without doubling. A wrong guess is cheap,
because only one call is admitted at first."""
EARLY_S = 3.0
"""The shortest opening that checks may end early. A server that has just come up may go down again, and the callers
that were refused a moment ago should not be the first to find out. A database restart takes about three seconds."""
UNIT_S = 1.0
"""When a refused caller should try again while other processes have all of the fleet's probe units. One beat: by then
the store has answered this process's next request for a unit."""
OPEN_JITTER = 0.2
"""An opening is lengthened by up to this share, so that processes opened by one outage do not all probe in the same
second. With a fifth and the default of 60 s, a hundred processes spread their probes over twelve seconds, and none
waits much longer than configured."""
