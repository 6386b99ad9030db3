"""How long a breaker stays open, and when it may be tried again: the numbers, each with its reason."""

HINT_S_MAX = 31 * 86_400.0
"""A server's own wait is believed up to a month: the caps are for our own guesses."""
IDLE_RECOVERIES = 3
"""After this many recovery times without a call, a reachable service is believed to be well: as long as the first three
openings of a sick one would last without doubling, and a cheap guess to get wrong, since only one call at first is
admitted then (rule R16)."""
EARLY_S = 3.0
"""An opening that checks may end early lasts at least this long: a server that has just come up may fall again, and the
callers refused a moment ago should not be the first to find out. A restart takes about as long."""
UNIT_S = 1.0
"""When to come back while other processes have all the fleet's probes: by then a second beat has been answered."""
OPEN_JITTER = 0.2
"""An opening is lengthened by up to this share, so that processes opened by one outage do not probe in the same second:
with a fifth, a hundred of them spread over twelve of sixty seconds, and none waits much longer than asked."""
