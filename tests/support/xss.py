"""Texts that would run as scripts, or break a page, if they were not escaped."""

from __future__ import annotations

XSS = (
    "<img src=x onerror=document.title='pwned'>",
    "\"'><script>document.title='pwned'</script>",
    "</textarea></pre><svg onload=document.title='pwned'>",
    "{{ 7 * 7 }}${7 * 7}<a href=\"javascript:document.title='pwned'\">x</a>",
)
