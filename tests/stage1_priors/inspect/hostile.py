"""Text that would do harm if a page took it for markup, and one that is longer than a store holds."""

HOSTILE = "<script>alert(1)</script> & \"the\" 'red' <img src=x onerror=alert(2)>"
PROSE = "</pre><script>alert(3)</script> I cannot & will not"
LONG = "Thing 7 of" + 80 * " many"
