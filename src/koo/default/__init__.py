"""The one platform of this process, and the names that are bound to it: what `from koo import query_ai` finds.

Each name acts on `platform`, which reads its settings when it is first used, opens itself on the running event loop and
closes when that loop ends. `backend/` has the same objects under the paths that users of the platform know. An
application with more than one platform, or with options of its own, makes a `koo.Platform` instead.
"""
