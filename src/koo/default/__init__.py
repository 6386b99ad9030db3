"""The process's default platform, and the names bound to it, such as `from koo import query_ai`.

Each name acts on `platform`, which reads its settings on first use, is opened on the running event loop and closes when
that loop ends. `backend/` has the same objects under the paths that users of the platform know. An application with
more than one platform, or with its own options, creates a `koo.Platform` instead.
"""
