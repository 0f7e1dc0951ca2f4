"""Tables, figures and the PDF: pure functions of collected results. Nothing here imports torch."""
