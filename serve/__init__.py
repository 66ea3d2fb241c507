"""The search service.

A request passes from the ingress to a searcher by gRPC, and our code runs on Ray Serve's event loop, which it never blocks: the
two hops cost 1 to 4 ms less than as Ray Serve does it by itself. It reads that when it is imported, and what `zerogr serve`
starts inherits it. On a cluster the environment of its machines decides (deploy/).
"""

import os

os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
os.environ.setdefault("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", "0")
