"""The headers of every response of the console."""

from __future__ import annotations

# Neither inline scripts and styles nor anything from elsewhere: text that a model or a client wrote can at worst be
# shown. Icons and pictures in answers are data URLs or come from this server.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    # The layout names the console's root, so that links are the same on all pages and need no path prefix.
    "base-uri": "'self'",
    "frame-ancestors": "'none'",
}
SECURITY_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with it, browsers send forms with `Origin: null`, which the check of the origin must refuse.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
