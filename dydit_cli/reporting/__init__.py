"""One self-contained page of what dydit's commands wrote: folders become sections, sections become HTML."""
