"""What LaTeX needs on Debian."""

_PACKAGES = (
    "texlive-latex-base texlive-latex-recommended texlive-latex-extra "
    "texlive-fonts-recommended texlive-publishers lmodern"
)
INSTALL_LATEX = f"install the Debian packages {_PACKAGES}"
