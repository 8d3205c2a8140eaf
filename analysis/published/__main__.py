from hoard.analysis.published import main

main()
