"""Charts as data, drawn twice: as a static SVG for print and for readers without JavaScript, and by a library."""
