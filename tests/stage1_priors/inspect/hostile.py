"""Text that would do harm if a page took it for markup."""

HOSTILE = "<script>alert(1)</script> & \"the\" 'red' <img src=x onerror=alert(2)>"
PROSE = "</pre><script>alert(3)</script> I cannot & will not"
